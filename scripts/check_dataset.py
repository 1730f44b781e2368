"""`python -m frcnn_jax.check_dataset`."""

from frcnn_jax.check_dataset import main
from frcnn_jax.errors import run_main

if __name__ == "__main__":
    run_main(main)
