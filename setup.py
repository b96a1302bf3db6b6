"""Put the protocols of episodes/ and the weights of pretrained/ into the wheel; all metadata is in setup.cfg."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
RESOURCES = ("episodes", "pretrained")


class BuildWithResources(build_py):
    """Copy the resource folders beside the modules as ``fsmer/_resources``, where `fsmer.resources` looks first."""

    def run(self):
        super().run()
        if self.editable_mode:  # an editable install reads the folders of the repository itself
            return
        target = Path(self.build_lib) / "fsmer" / "_resources"
        # An earlier build may have left a protocol there that is gone since.
        shutil.rmtree(target, ignore_errors=True)
        for source in self._resource_files():
            destination = target / source.relative_to(ROOT)
            destination.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, destination)

    def get_outputs(self, include_bytecode=True):
        target = Path(self.build_lib) / "fsmer" / "_resources"
        resources = [] if self.editable_mode else [str(target / p.relative_to(ROOT)) for p in self._resource_files()]
        return [*super().get_outputs(include_bytecode), *resources]

    def get_source_files(self):
        return [*super().get_source_files(), *(str(path.relative_to(ROOT)) for path in self._resource_files())]

    def _resource_files(self):
        for folder in RESOURCES:
            for path in sorted((ROOT / folder).rglob("*")):
                hidden = any(part.startswith(".") for part in path.relative_to(ROOT).parts)
                if path.is_file() and not hidden:
                    yield path


setup(cmdclass={"build_py": BuildWithResources})
