"""The third front door: models that train eagerly, of Keras 3 or made of ``tf.Module`` and ``tf.function``."""
