"""The same network behind BentoML: compiled forward, JSON lists."""

# Not postponed: BentoML reads the annotations.
import os

import bentoml
import numpy as np


@bentoml.service(workers=1, traffic={"timeout": 60})
class Peer:
    def __init__(self) -> None:
        import keras
        import tensorflow as tf

        network = keras.saving.load_model(os.environ["PEER_NETWORK"], compile=False)
        spec = tf.TensorSpec([None, 32, 32, 3], "uint8")
        self.forward = tf.function(lambda rows: network(rows, training=False), [spec])
        self.forward(np.zeros((1, 32, 32, 3), np.uint8))

    @bentoml.api(route="/invocations")
    def predict(self, inputs: np.ndarray) -> np.ndarray:
        return self.forward(inputs.astype(np.uint8)).numpy()
