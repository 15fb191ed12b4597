"""What a plan means for a model: facts and totals as data, as text and as a page."""
