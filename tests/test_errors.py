import pytest

from frcnn_jax.errors import InputError, run_main


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (InputError("a.xml: broken"), "error: a.xml: broken"),
        (OSError(28, "No space left on device", "w/x"), "error: .*No space left on device"),
        (KeyboardInterrupt("step 3 is saved"), "^interrupted: step 3 is saved$"),
        (KeyboardInterrupt(), "^interrupted$"),
    ],
)
def test_a_mistake_is_one_line_and_not_zero(error, text):
    def main(argv):
        raise error

    with pytest.raises(SystemExit, match=text):
        run_main(main)


def test_a_bug_keeps_its_traceback():
    def main(argv):
        raise TypeError("bug")

    with pytest.raises(TypeError):
        run_main(main)
