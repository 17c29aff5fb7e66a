"""What docs/profiles.md says about files of one's own works as written."""

import re
from pathlib import Path

from vtx.lab.profile import load_profile
from vtx.profiles.schema import OPTIONAL_PRICES, PRICES

TEXT = (Path(__file__).parents[2] / "docs" / "profiles.md").read_text()


def test_the_example_is_a_profile(tmp_path: Path) -> None:
    example = re.search(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    assert example is not None
    path = tmp_path / "my_host.yaml"
    path.write_text(example[1])
    profile = load_profile(str(path))
    assert profile.id == "my_host"
    assert profile.prices["walk.reference"].cycles == 14
    assert profile.prices["vmread"] == load_profile("skylake_sp").prices["vmread"]


def test_every_price_is_described() -> None:
    for name in (*PRICES, *OPTIONAL_PRICES, "walk.fixed", "walk.reference"):
        described = f"`{name}`" in TEXT or name == "round_trip"
        assert described, name
