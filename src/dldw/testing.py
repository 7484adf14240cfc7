"""For tests: assertions about gradients that say what is wrong, and where."""

from __future__ import annotations

from typing import Any

from torch import nn

from dldw.checking import CheckResult, check, check_function


def assert_gradient(subject: Any, *args: Any, **settings: Any) -> CheckResult:
    """Passes where the gradient is right and fails with the text of ``CheckResult.explain`` otherwise.

    Called like ``dldw.check`` with a module first, and like ``dldw.check_function`` with a function or an
    ``autograd.Function``.

    Args:
        subject: A module, or a function.
        *args: ``loss, batch`` for a module; ``gradient, x`` and more arguments for a function.
        **settings: The settings of ``dldw.check`` or ``dldw.check_function``.

    Returns:
        The result, where it is right.

    Raises:
        AssertionError: The gradient is wrong, or there is no telling.
        DldwError: See ``dldw.check``.

    Example:
        >>> import torch
        >>> from dldw.testing import assert_gradient
        >>> assert_gradient(torch.nn.Linear(3, 1), lambda m, x: m(x).square().mean(), torch.ones(5, 3)).verdict
        'right'
        >>> try:
        ...     assert_gradient(torch.sin, lambda x: -torch.cos(x), torch.arange(3.0))
        ... except AssertionError as error:
        ...     print(str(error).splitlines()[2])
          x       3      1.79        wrong    2      all of it  scaled by -1: the sign is wrong
    """
    compare = check if isinstance(subject, nn.Module) else check_function
    result = compare(subject, *args, **settings)
    if not result:
        raise AssertionError(result.explain())
    return result
