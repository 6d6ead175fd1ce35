"""What pyproject.toml cannot say: an installed package has a copy of code/config.py, so that knobs have one home."""

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithKnobs(build_py):
    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        modules = super().find_package_modules(package, package_dir)
        return [*modules, (package, "config", "code/config.py")] if package == "clamp3.cli" else modules


setup(cmdclass={"build_py": BuildWithKnobs})
