"""benchmarks/ranks.py: its formulas, its table and its refusals."""

import pytest
import ranks


def test_a_sum_sends_each_gradient_twice_but_for_the_own_part():
    step, parameters, rate = 0.1, 10**6, 1e9
    for n, sent in ((2, 1.0), (4, 1.5), (8, 1.75)):
        expected = step + sent * 4 * parameters / 125e6 + 2 * (n - 1) * ranks.LATENCY
        assert ranks.predicted("sum", step, parameters, n, rate, 4) == pytest.approx(expected)


def test_a_round_loads_the_link_of_rank_0():
    step, parameters, rate = 0.1, 10**6, 20e6
    for n in (2, 4, 8):
        expected = step + (n - 1) * (2 * parameters / 2.5e6 + 2 * ranks.LATENCY) / 50
        assert ranks.predicted("rounds", step, parameters, n, rate, 1, 50) == pytest.approx(expected)


def test_predictions_name_the_fastest_mode():
    rows = list(ranks.predict(["char"], 0.02))
    assert {row["machines"] for row in rows} == {2, 4, 8, 16, 64, 256} and len(rows) == 18
    for row in rows:
        modes = {name: value for name, value in row.items() if name.startswith(("sum", "rounds"))}
        assert len(modes) == 3 and row["best"] == max(modes, key=modes.get)


def test_table_has_a_cell_for_every_column():
    lines = list(ranks.table([dict(a=1234, b=0.5), dict(a=1, c="x")]))
    assert lines == ["| a | b | c |", "|---|---|---|", "| 1,234 | 0.5 |  |", "| 1 |  | x |"]


def test_what_to_measure_has_to_be_said(capsys):
    with pytest.raises(SystemExit) as ended:
        ranks.main([])
    assert ended.value.code == 2 and "say what to measure" in capsys.readouterr().err
