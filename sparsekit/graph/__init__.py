"""Reading and editing graphs: one view over live graphs, GraphDefs and their function bodies."""
