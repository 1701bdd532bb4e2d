"""The command `lrt-lens update` on two small folders: verdicts, repaired files, and pages."""

import json
from pathlib import Path
from typing import Any

import lrt_lens as lrt
from lrt_lens.cli import main


def test_a_probe_and_a_vector_of_an_updated_model(
    build_hf: Any, tokenizer: Any, tmp_path: Path, corpus: list[str], passages: list[str]
) -> None:
    model = build_hf("llama", d=16, layers=2, seed=3)
    for name in ("old", "new"):
        # Other weights in the output alone, so that the stream stays as it was.
        model.lm_head.weight.data[0] += 0.01 * (name == "new")
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    old = lrt.HookedModel.load(tmp_path / "old")
    labels = ["yes" if "cat" in text else "no" for text in passages]
    lrt.LinearProbe.fit(old, passages[:75], labels[:75], at=1, read="mean", name="cat").save(
        tmp_path / "probe.safetensors"
    )
    contrast = lrt.ContrastSet(
        [f"{t} cat" for t in passages[:9]], [f"{t} dog" for t in passages[:9]]
    )
    lrt.SteeringVector.mean_difference(old, contrast, at=1).save(tmp_path / "vector.safetensors")
    rows = [
        json.dumps({"text": t, "label": label}) for t, label in zip(passages, labels, strict=True)
    ]
    (tmp_path / "labelled.jsonl").write_text("\n".join(rows))
    (tmp_path / "documents.jsonl").write_text(
        "\n".join(json.dumps({"text": text}) for text in corpus)
    )
    out = tmp_path / "update"
    main(
        [
            "update",
            str(tmp_path / "old"),
            str(tmp_path / "new"),
            "--artefacts",
            str(tmp_path / "probe.safetensors"),
            str(tmp_path / "vector.safetensors"),
            "--documents",
            str(tmp_path / "documents.jsonl"),
            "--labelled",
            str(tmp_path / "labelled.jsonl"),
            "--n-tokens",
            "3000",
            "--context-length",
            "48",
            "--n-shuffled",
            "3",
            "--no-progress",
            "--out",
            str(out),
        ]
    )
    results = json.loads((out / "results.json").read_text())
    assert [row["verdict"] for row in results["update_summary"]] == ["keep", "keep"]
    assert results["update_summary"][0]["old"] == results["update_summary"][0]["frozen"]
    new = lrt.HookedModel.load(tmp_path / "new")
    repaired = lrt.LinearProbe.load(out / "repaired" / "cat.safetensors")
    assert len(repaired.predict(new, passages[:3])) == 3
    main(["report", str(out), "--out", str(tmp_path / "page")])
    page = (tmp_path / "page" / "report.html").read_text()
    assert "After the update" in page
    assert "texts or items" in page
