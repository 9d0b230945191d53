from __future__ import annotations

from pathlib import Path

from two_ranks import of_case, run


def test_a_sharded_model_is_pushed_whole_with_its_current_values(tmp_path: Path) -> None:
    worker = str(Path(__file__).parent / "push_worker.py")
    first, second = of_case(run(worker, tmp_path), "server")
    assert second["pushes"] == 0
    assert first["pushes"] == 2
    assert first["names"] == [True, True]
    assert first["first is the base"]
    assert first["holds the values"]
    assert first["moved"] > 100
    assert first["moved outside"] == 0
