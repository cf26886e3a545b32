"""The tables of what the advantage stage of verl costs are those of its record."""

from benchmarks import records, verl_cost


def test_the_documentation_shows_the_record():
    measurements, origin = records.read(verl_cost.RECORD)
    assert origin.packages.startswith("verl ")
    assert measurements[0].candidate == measurements[0].baseline == "verl, grpo"
    page = (records.ROOT / "docs/verl.md").read_text(encoding="utf-8")
    tables = verl_cost.tables(measurements)
    assert len(tables) == 2
    for table in tables:
        assert table in page
