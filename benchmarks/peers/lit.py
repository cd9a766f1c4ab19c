"""The same network behind LitServe: compiled forward, JSON lists."""

# Without annotations: LitServe would read them as the fields of a form.
import os
import sys

import litserve
import numpy as np


class Peer(litserve.LitAPI):
    def setup(self, device):
        import keras
        import tensorflow as tf

        network = keras.saving.load_model(os.environ["PEER_NETWORK"], compile=False)
        spec = tf.TensorSpec([None, 32, 32, 3], "uint8")
        self.forward = tf.function(lambda rows: network(rows, training=False), [spec])
        self.forward(np.zeros((1, 32, 32, 3), np.uint8))

    def decode_request(self, request):
        return np.asarray(request["inputs"], np.uint8)

    def predict(self, x):
        return self.forward(x).numpy()

    def encode_response(self, output):
        return {"predictions": output.tolist()}


if __name__ == "__main__":
    server = litserve.LitServer(Peer(api_path="/invocations"), accelerator="cpu", timeout=60)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False)
