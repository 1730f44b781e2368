"""`python -m frcnn_jax.train_svm`."""

from frcnn_jax.errors import run_main
from frcnn_jax.train_svm import main

if __name__ == "__main__":
    run_main(main)
