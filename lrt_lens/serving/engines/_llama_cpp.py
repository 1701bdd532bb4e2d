"""The real llama.cpp, through its C interface, for certificates.

Problem: llama-server keeps running when a control vector is wrong, so only logits tell whether it
steers. Mechanism: the wheel of ``xllamacpp`` carries llama.cpp as one shared object, whose C
functions are called with ctypes: the model and the control vector are loaded by llama.cpp's own
code, and the logits of all positions come back.

    engine = LlamaCpp("model.gguf")
    check_export("mood.gguf", model, engine=engine)

Limits: one sequence at a time, on the CPU. The offsets of three settings are those of the pinned
version; with another one, `LlamaCpp` refuses to start.
"""

import ctypes
import importlib.util
import os
import struct
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from lrt_lens._stored_fields import as_damage
from lrt_lens.adapters.vectors._served_file import kind_of
from lrt_lens.errors import FileFormatError
from lrt_lens.serving.formats._gguf import ARCHITECTURE

_FLASH, _TYPE_K, _TYPE_V = (52, -1, 0), (104, 1, 0), (108, 1, 0)
"""Offset, default and wanted value of parameters: no flash attention, a cache in float32."""
_LOAD = "_Z26common_control_vector_loadRKSt6vectorI31common_control_vector_load_infoSaIS0_EE"
"""``common_control_vector_load``, by which llama-cli and llama-server read files."""
_EXTRA = "pip install 'lrt-lens[llama-cpp]'"
_CONVERT = "convert_hf_to_gguf.py of llama.cpp writes one from a Hugging Face folder"


class _Opaque(ctypes.Structure):
    """Parameters whose defaults are passed on."""

    _fields_ = (("octets", ctypes.c_ubyte * 2048),)


class _LlamaBatch(ctypes.Structure):
    """``llama_batch``."""

    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.POINTER(ctypes.c_float)),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


class _Info(ctypes.Structure):
    """``common_control_vector_load_info``: strength and name of a file."""

    _fields_ = (("strength", ctypes.c_float), ("name", ctypes.c_void_p))


class _Vector(ctypes.Structure):
    """``std::vector``."""

    _fields_ = (("begin", ctypes.c_void_p), ("end", ctypes.c_void_p), ("capacity", ctypes.c_void_p))


class _Data(ctypes.Structure):
    """``common_control_vector_data``."""

    _fields_ = (("n_embd", ctypes.c_int32), ("data", _Vector))


class LlamaCpp:
    """llama.cpp with a model in a GGUF file.

    Raises:
        ImportError: ``xllamacpp`` is not installed; the message says how.
        FileFormatError: there is no such file, or it is none that llama.cpp loads as a model; the
            message says what it is.
        RuntimeError: the version of llama.cpp is another one than the offsets were checked for.
    """

    def __init__(self, model: str | Path, *, n_threads: int = 1) -> None:
        self._library, self._package = _library(), version("xllamacpp")
        _refuse_no_model(Path(model))
        self._model = self._library.llama_model_load_from_file(
            os.fsencode(model), self._library.llama_model_default_params()
        )
        if not self._model:
            raise _unloadable(Path(model), self._package)
        parameters = self._library.llama_context_default_params()
        for offset, default, wanted in (_FLASH, _TYPE_K, _TYPE_V):
            value = ctypes.cast(ctypes.byref(parameters, offset), ctypes.POINTER(ctypes.c_int32))
            if value[0] != default:
                raise RuntimeError(
                    f"xllamacpp {self._package} has {value[0]} at offset {offset} of its"
                    f" parameters; expected {default}: install the version of {_EXTRA}"
                )
            value[0] = wanted
        self._context = self._library.llama_init_from_model(self._model, parameters)
        self._library.llama_set_n_threads(self._context, n_threads, n_threads)
        self._width = self._library.llama_model_n_embd(self._model)
        self._n_layers = self._library.llama_model_n_layer(self._model)
        vocabulary = self._library.llama_model_get_vocab(self._model)
        self._n_vocabulary = self._library.llama_vocab_n_tokens(vocabulary)

    @property
    def name(self) -> str:
        """Name of the engine, as certificates show it."""
        return "llama.cpp"

    @property
    def version(self) -> str:
        """Version of the package that carries llama.cpp."""
        return f"xllamacpp {self._package}"

    def logits(self, rows: Sequence[Sequence[int]], path: Path | None) -> list[np.ndarray]:
        """Return the logits of each row of token ids, [position, vocabulary].

        Raises:
            FileFormatError: llama.cpp refuses the control vector, or it does not fit the model.
        """
        self._steer(path)
        try:
            return [self._row(list(row)) for row in rows]
        finally:
            self._steer(None)

    def close(self) -> None:
        """Free the model."""
        self._library.llama_free(self._context)
        self._library.llama_model_free(self._model)

    def _row(self, row: list[int]) -> np.ndarray:
        library = self._library
        library.llama_memory_clear(library.llama_get_memory(self._context), True)
        batch = library.llama_batch_init(len(row), 0, 1)
        batch.n_tokens = len(row)
        for i, token in enumerate(row):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, i, 1
            batch.seq_id[i][0], batch.logits[i] = 0, 1
        status = library.llama_decode(self._context, batch)
        library.llama_batch_free(batch)
        if status != 0:
            raise ValueError(
                f"llama.cpp ended with status {status} for {len(row)} tokens; give shorter prompts"
            )
        size = (self._n_vocabulary,)
        found = (library.llama_get_logits_ith(self._context, i) for i in range(len(row)))
        return np.stack([np.ctypeslib.as_array(one, size).copy() for one in found])

    def _steer(self, path: Path | None) -> None:
        """Set the control vector of a file as llama-server does; None removes it."""
        set_vector = self._library.llama_set_adapter_cvec
        if path is None:
            set_vector(self._context, None, 0, self._width, -1, -1)
            return
        width, numbers = self._read(path)
        if width < 0:
            raise FileFormatError(f"llama.cpp refuses the control vector {str(path)!r}")
        # llama.cpp keeps the directions of an earlier file in layers that this one does not name,
        # so all layers are set.
        whole = np.zeros(max(numbers.size, (self._n_layers - 1) * width), np.float32)
        whole[: numbers.size] = numbers
        # llama-server's defaults: from layer 1 to the last.
        status = set_vector(self._context, whole.ctypes.data, whole.size, width, 1, self._n_layers)
        if status != 0:
            raise FileFormatError(
                f"{str(path)!r} has directions of width {width}; the model of llama.cpp has"
                f" {self._width}: export the vector of this model"
            )

    def _read(self, path: Path) -> tuple[int, np.ndarray]:
        """Return (width, numbers) of a file as llama.cpp's own loader reads it."""
        load = self._library[_LOAD]
        load.argtypes, load.restype = [ctypes.c_void_p, ctypes.c_void_p], ctypes.c_void_p
        # A ``std::string`` of the old layout: length, capacity, references, then the text.
        name = os.fsencode(path)
        header = struct.pack("<QQiI", len(name), len(name), 1000, 0)
        text = ctypes.create_string_buffer(header + name + b"\0")
        info = _Info(1.0, ctypes.addressof(text) + len(header))
        start = ctypes.addressof(info)
        files = _Vector(start, start + ctypes.sizeof(info), start + ctypes.sizeof(info))
        result = _Data()
        load(ctypes.addressof(result), ctypes.addressof(files))
        begin, end = result.data.begin or 0, result.data.end or 0
        n = (end - begin) // ctypes.sizeof(ctypes.c_float)
        if not n:
            return result.n_embd, np.zeros(0, np.float32)
        numbers = ctypes.cast(begin, ctypes.POINTER(ctypes.c_float))
        return result.n_embd, np.ctypeslib.as_array(numbers, (n,)).copy()


def _refuse_no_model(path: Path) -> None:
    """Raise `FileFormatError` if a file cannot be a model of llama.cpp."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise FileFormatError(f"{str(path)!r} {what}; expected a model in a GGUF file: {_CONVERT}")
    kind = kind_of(path)
    if kind != "gguf":
        raise FileFormatError(
            f"{str(path)!r} is a file of {kind or 'an unknown kind'}; expected a model in a GGUF"
            f" file: {_CONVERT}"
        )


def _unloadable(path: Path, package: str) -> FileFormatError:
    """Return the error for a GGUF file that llama.cpp does not load, by what it is."""
    import gguf

    try:
        # The reader raises errors of many kinds for files that are cut.
        with as_damage(path):
            field: Any = gguf.GGUFReader(path).fields.get("general.architecture")
    except FileFormatError as error:
        return FileFormatError(f"llama.cpp cannot load the model: {error}")
    architecture = None if field is None else field.contents()
    if architecture == ARCHITECTURE:
        return FileFormatError(
            f"{str(path)!r} is a control vector; expected the model that it steers:"
            f" LlamaCpp(MODEL), and check_export({str(path)!r}, model, engine=…)"
        )
    return FileFormatError(
        f"llama.cpp cannot load the model {str(path)!r} of architecture {architecture!r}: it is"
        f" incomplete, or the llama.cpp of xllamacpp {package} does not know it; {_CONVERT}"
    )


def _library() -> Any:
    """Return llama.cpp's C interface with the types of the functions that are called."""
    found = importlib.util.find_spec("xllamacpp")
    if found is None or found.origin is None:
        raise ImportError(f"llama.cpp runs through the package xllamacpp: {_EXTRA}")
    library: Any = ctypes.CDLL(str(Path(found.origin).parent / "xllamacpp.abi3.so"))
    pointer, number = ctypes.c_void_p, ctypes.c_int32
    numbers = ctypes.POINTER(ctypes.c_float)
    types: dict[str, tuple[Any, list[Any]]] = {
        "llama_backend_init": (None, []),
        "llama_model_default_params": (_Opaque, []),
        "llama_context_default_params": (_Opaque, []),
        "llama_model_load_from_file": (pointer, [ctypes.c_char_p, _Opaque]),
        "llama_init_from_model": (pointer, [pointer, _Opaque]),
        "llama_set_n_threads": (None, [pointer, number, number]),
        "llama_batch_init": (_LlamaBatch, [number, number, number]),
        "llama_batch_free": (None, [_LlamaBatch]),
        "llama_decode": (number, [pointer, _LlamaBatch]),
        "llama_get_logits_ith": (numbers, [pointer, number]),
        "llama_set_adapter_cvec": (
            number,
            [pointer, pointer, ctypes.c_size_t, number, number, number],
        ),
        "llama_get_memory": (pointer, [pointer]),
        "llama_memory_clear": (None, [pointer, ctypes.c_bool]),
        "llama_model_n_embd": (number, [pointer]),
        "llama_model_n_layer": (number, [pointer]),
        "llama_model_get_vocab": (pointer, [pointer]),
        "llama_vocab_n_tokens": (number, [pointer]),
        "llama_free": (None, [pointer]),
        "llama_model_free": (None, [pointer]),
        "llama_log_set": (None, [pointer, pointer]),
    }
    for name, (result, arguments) in types.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    library.llama_log_set(_SILENT, None)
    library.llama_backend_init()
    return library


_SILENT = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
"""Log function that prints nothing; it must live as long as the library."""
