"""The public names, and that importing them is cheap."""

from __future__ import annotations

import subprocess
import sys

import foreword
from foreword import errors


def test_all_names_exist_and_nothing_else_is_listed() -> None:
    assert sorted(foreword.__all__) == dir(foreword)
    for name in foreword.__all__:
        assert getattr(foreword, name) is not None


def test_verbs_stay_functions_after_their_packages_are_imported() -> None:
    import foreword.evaluation
    import foreword.training

    assert callable(foreword.train)
    assert callable(foreword.evaluate)


def test_import_loads_no_heavy_library() -> None:
    code = (
        "import sys, foreword, foreword.cli.main\n"
        "heavy = {'torch', 'transformers', 'accelerate', 'datasets', 'matplotlib', 'pyarrow', 'numpy'}\n"
        "heavy &= set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_every_error_is_a_foreword_error_and_in_the_tree() -> None:
    classes = [
        value for value in vars(errors).values() if isinstance(value, type) and value.__module__ == errors.__name__
    ]
    for cls in classes:
        assert issubclass(cls, errors.ForewordError | UserWarning)
        assert cls.__name__ in str(errors.__doc__)
