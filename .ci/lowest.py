"""Print the lowest version that pyproject.toml declares of every dependency, as constraints for pip."""

import re
import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
groups = [project["dependencies"], *project["optional-dependencies"].values()]
for name in sorted({requirement for group in groups for requirement in group}):
    found = re.fullmatch(r"([A-Za-z0-9._-]+)>=([0-9][0-9.]*)", name)
    if found is None:
        sys.exit(f"pyproject.toml: {name!r} does not name its lowest version, as NAME>=VERSION")
    print(f"{found[1]}=={found[2]}")
