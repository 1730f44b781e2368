"""`frcnn eval-voc`."""

from frcnn_jax.__main__ import run

if __name__ == "__main__":
    run("eval-voc")
