"""Probes as plain JSON and safetensors, with the rule by which their rows are read.

    probe.export("probe")                 # probe/probe.json and probe/probe.safetensors
    LinearProbe.load("probe")             # the same probe

Problem: a monitor that is moved as a matrix of weights loses what it reads: the layer, the tokens,
the special tokens that it skips, the text before the prompt, the threshold. Mechanism: the folder
has the tensors under plain names, all fields of the probe as JSON, and a *rule* in words and
numbers, from which a program without this library reads the same rows and computes

    p = sigmoid(x·w + b)  (two classes: of the second),    p = softmax(x W + b)  (more)

Recentring and any shift of the states are part of b. The rule is written for others and not read
back: fields and tensors are the probe.

    {"schema_version": "lrt_lens.probe-export/1",
     "probe": {"classes": ["no", "yes"], "hook": "blocks.3.hook_resid_post", "read": "mean", …},
     "rule": {"state": "output of decoder block 3", "hidden_states_index": 4, …}}

Limits: a file that another program wrote needs ``schema_version``, ``probe.classes``,
``probe.hook`` and both tensors; without ``probe.model`` no other model is refused. scikit-learn
has no file format but pickles, so that `probe_to_sklearn` gives the estimator instead.
"""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from lrt_lens._files import foreign_file, write_atomically
from lrt_lens._folders import write_folder
from lrt_lens._hub import downloaded_file, is_hub_id
from lrt_lens._stored_fields import (
    as_damage,
    read_json_file,
    schema_of,
    stored_fields,
    stored_text,
    stored_value,
)
from lrt_lens._tensor_files import read_tensor_file, write_tensors
from lrt_lens.adapters.probes._linear_probe import LinearProbe
from lrt_lens.errors import FileFormatError
from lrt_lens.models._belonging import refuse_impossible_hook
from lrt_lens.models._reading import EveryRead
from lrt_lens.serving._reading_rule import stream_rule
from lrt_lens.stitching._affine import AffineMap

PROBE_EXPORT_SCHEMA = "lrt_lens.probe-export/1"
"""Schema version of ``probe.json``; another one is refused."""
_OUR_SCHEMA = "lrt_lens.probe"
"""Start of the schemas of probes, exported and saved, of all versions."""
RULE_NAME, PROBE_FILE = "probe.json", "probe.safetensors"
"""Names of the files in the folder of an exported probe; a hub repository has the second one."""
_APART = ("weight", "bias", "before")
_SHAPES = {"weight": "d column", "bias": "column"}
_MAP_SHAPES = {"before.weight": "stream d", "before.bias": "d"}
_POOLING = {
    "last": "the last unmasked token of a text",
    "mean": "the mean over the unmasked tokens of a text",
    "max": "the elementwise maximum over the unmasked tokens of a text",
    "every": "each unmasked token on its own",
}


def export_probe(
    probe: LinearProbe, path: str | Path, *, to: Literal["json", "scikit-learn"] = "json"
) -> Path:
    """Write a folder with ``probe.json`` and ``probe.safetensors`` and return its path.

    The files are replaced as a whole. Equal probes give equal bytes.

    Args:
        probe: the probe.
        path: the folder; it is created if it does not exist.
        to: ``"json"``; for scikit-learn use `probe_to_sklearn`.

    Raises:
        ValueError: ``to`` is ``"scikit-learn"``, which has no file format, or is unknown.
        FileExistsError: the folder has a ``probe.json`` or ``probe.safetensors`` that is none of
            an exported or saved probe.
        OSError: the folder cannot be written to.
    """
    if to == "scikit-learn":
        raise ValueError(
            "scikit-learn has no file format but pickles, which run code when they are read; take "
            "the fitted estimator, probe.to_sklearn(), or write to='json'"
        )
    if to != "json":
        raise ValueError(f"to is {to!r}; expected 'json' (or probe.to_sklearn())")
    _refuse_foreign(Path(path))
    tensors = {"weight": probe.weight, "bias": probe.bias}
    hooks = None
    if probe.before is not None:
        tensors |= {"before.weight": probe.before.weight, "before.bias": probe.before.bias}
        hooks = [probe.before.source_hook, probe.before.target_hook]
    fields = {k: v for k, v in asdict(replace(probe, before=None)).items() if k not in _APART}
    stored = json.loads(stored_text(LinearProbe, fields, others=_APART)) | {"before": hooks}
    whole = {"schema_version": PROBE_EXPORT_SCHEMA, "probe": stored, "rule": reading_rule(probe)}
    # NaN, an unknown penalty, is no JSON; a missing field has that default.
    stored = {key: value for key, value in stored.items() if value == value}
    text = json.dumps(whole | {"probe": stored}, indent=1, ensure_ascii=False, allow_nan=False)

    # Whole numbers are weights too. Nothing is added to others, so that every bit stays.
    ready = {name: t if t.is_floating_point() else t.double() for name, t in tensors.items()}

    def write(staging: Path) -> None:
        write_tensors(
            staging / PROBE_FILE, ready, {"schema_version": PROBE_EXPORT_SCHEMA, "format": "pt"}
        )
        octets = f"{text}\n".encode("utf-8", errors="replace")
        write_atomically(staging / RULE_NAME, lambda temporary: temporary.write_bytes(octets))

    return write_folder(Path(path), write, last=RULE_NAME)


def _refuse_foreign(folder: Path) -> None:
    """Raise `FileExistsError` if a file of another program would be overwritten."""
    rule, tensors = folder / RULE_NAME, folder / PROBE_FILE
    if rule.exists():
        # The tensors beside a rule of this schema may be those of another program.
        if not schema_of(rule).startswith(_OUR_SCHEMA):
            raise foreign_file(rule, "exported probe")
        return
    if tensors.exists():
        try:
            schema = read_tensor_file(tensors, None).metadata.get("schema_version", "")
        except FileFormatError:
            schema = ""
        if not schema.startswith(_OUR_SCHEMA):
            raise foreign_file(tensors, "exported probe")


def load_probe(path: str | Path, **hub: Any) -> LinearProbe:
    """Return the probe in a file, in an exported folder or in a hub repository.

    Args:
        path: a file of ``LinearProbe.save``, a folder of `export_probe`, or a hub id.
        **hub: arguments of `huggingface_hub.hf_hub_download`, such as ``revision``.

    Raises:
        FileFormatError: there is no probe, or it is incomplete, damaged or of another version.
    """
    folder = Path(path)
    if folder.is_dir():
        if (folder / RULE_NAME).is_file():
            return _read_folder(folder)
        if not (folder / PROBE_FILE).is_file():
            raise FileFormatError(
                f"{str(folder)!r} holds neither {RULE_NAME} nor {PROBE_FILE}; it is no folder of a "
                "probe: give one that probe.export wrote"
            )
        return LinearProbe.load(folder / PROBE_FILE)
    if is_hub_id(path):
        return LinearProbe.load(downloaded_file(str(path), PROBE_FILE, "probe", **hub))
    return LinearProbe.load(folder)


def _read_folder(folder: Path) -> LinearProbe:
    path = folder / RULE_NAME
    content = read_json_file(path, PROBE_EXPORT_SCHEMA).get("probe")
    if not isinstance(content, dict):
        raise FileFormatError(
            f"{str(path)!r} lacks the object 'probe' with the fields of a probe; export it again"
        )
    hooks = content.pop("before", None)
    fields = stored_fields(path, LinearProbe, content, others=_APART)
    refuse_impossible_hook(path, fields["hook"], fields.get("model"))
    file = read_tensor_file(folder / PROBE_FILE, None)
    if hooks is None:
        tensors, before = file.checked(_SHAPES), None
    else:
        hooks = stored_value(path, tuple[str, str], json.dumps(hooks), "before")
        tensors = file.checked(_SHAPES | _MAP_SHAPES)
        before = AffineMap(tensors["before.weight"], tensors["before.bias"], *hooks)
    with as_damage(path):
        return LinearProbe(weight=tensors["weight"], bias=tensors["bias"], before=before, **fields)


# ------------------------------------------------------------------------------------------- rule


def reading_rule(probe: LinearProbe) -> dict[str, Any]:
    """Return the rule by which another program reads the probe's rows and computes its answer.

    It is plain JSON: names, numbers and sentences.
    """
    model = probe.model
    state = stream_rule(probe.hook, model)
    two = len(probe.classes) == 2
    rows = "x = y·before.weight + before.bias for every token y, then " if probe.before else ""
    return {
        "state": state.words,
        "hidden_states_index": state.hidden_state,
        "subtract_mean_over_dimensions": state.subtracts_mean,
        "note": state.note,
        "row": f"{rows}{_pooling(probe.read)}",
        "masked_first_positions": probe.skip_first,
        "masked_special_tokens": True,
        "text_starts_with_bos": None if model is None else model.prepend_bos,
        "token_ids_before_the_text": None
        if model is None or model.prefix is None
        else list(model.prefix),
        "texts_without_unmasked_tokens": probe.short_texts,
        "texts_longer_than_the_context": probe.truncation or "refused",
        "formula": (
            "p = sigmoid(x·weight + bias) is the probability of classes[1]"
            if two
            else "p = softmax(x·weight + bias) are the probabilities of classes"
        ),
        "decision": "classes[1] if p >= threshold" if two else "the class of the largest p",
        "threshold": 0.5 if two else None,
        "threshold_set_on_unlabelled_texts": probe.n_recentred,
        "shift": "part of bias: nothing is subtracted from x",
    }


def _pooling(read: EveryRead) -> str:
    """Return in words which tokens of a text are read."""
    if isinstance(read, int):
        side = "from the end of" if read < 0 else "of"
        return f"position {read} {side} a text, special tokens before it included"
    return _POOLING[read]
