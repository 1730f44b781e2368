"""The console command `frcnn`, as `python -m frcnn_jax NAME ...`."""

from frcnn_jax.cli import main

if __name__ == "__main__":
    main()
