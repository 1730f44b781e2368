import re

import pytest

from frcnn_jax.errors import InputError, Interrupted, run_main


@pytest.mark.parametrize(
    ("error", "text", "code"),
    [
        (InputError("a.xml: broken"), "error: a.xml: broken", 1),
        (OSError(28, "No space left on device", "w/x"), "error: .*No space left on device.*", 1),
        (Interrupted("step 3 is saved"), "interrupted: step 3 is saved", 75),
        (KeyboardInterrupt(), "interrupted", 1),
    ],
)
def test_a_mistake_is_one_line_and_not_zero(error, text, code, capsys):
    def main(argv):
        raise error

    with pytest.raises(SystemExit) as exit_info:
        run_main(main)
    assert exit_info.value.code == code
    assert re.fullmatch(f"{text}\\n", capsys.readouterr().err)


def test_names_that_are_no_utf8_are_printed(capsys):
    run_main(lambda argv: print("a\udcff.xml"))
    assert capsys.readouterr().out == "a\\udcff.xml\n"


def test_a_bug_keeps_its_traceback():
    def main(argv):
        raise TypeError("bug")

    with pytest.raises(TypeError):
        run_main(main)
