"""``python -m durian_adv.adapters.swift``: the path of the plugin, for ``--external_plugins`` of ms-swift."""

from pathlib import Path

print(Path(__file__).parent / "plugin" / "__init__.py")
