"""Versions of packages, which a result remembers."""

from importlib.metadata import PackageNotFoundError, version


def version_of(package: str) -> str:
    """Version of an installed package; of one that Python runs from a folder of sources, that it is not installed.

    A run from such a folder must not end in an error for want of a number.

    Args:
        package: Name of the package.

    Returns:
        The version.

    Example:
        >>> version_of("a package that nobody has written")
        'not installed'
    """
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
