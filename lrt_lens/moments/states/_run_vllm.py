"""Let vLLM compute the hidden states of the windows beside this file.

Run it in the environment of vLLM (0.18 or later); lrt_lens is not needed there:

    python run_vllm.py                                     # on one GPU
    python run_vllm.py --tensor-parallel-size 8 --dtype bfloat16
    python run_vllm.py --options '{"gpu_memory_utilization": 0.8}'

It writes NUMBER.safetensors per window (hidden_states [token, layer, d] and token_ids), the windows
in the order in which the harvest needs them, and goes on where it was stopped: numbers.txt lists
the windows that are done, also when the harvest has deleted their files.
"""
# pyright: reportMissingImports=false

import argparse
import fcntl
import json
import os
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
PATIENCE = 120.0


def arguments():
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="hub id or folder; default: that of states.json")
    parser.add_argument("--dtype", default="auto", help="precision of the model and the states")
    parser.add_argument("--tensor-parallel-size", type=int, default=1, help="GPUs per replica")
    parser.add_argument("--batch", type=int, default=64, help="windows per call")
    parser.add_argument("--limit", type=int, help="windows after which to stop")
    parser.add_argument("--options", default="{}", help="further arguments of vllm.LLM, as JSON")
    return parser.parse_args()


def engine(manifest, options, scratch):
    """Return vLLM, which writes hidden states into a scratch folder."""
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # In one process vLLM does not write the file of its last request.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"
    # The processes of vLLM import the connector for CPUs from here.
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    sys.path.insert(0, str(HERE))
    import torch
    from vllm import LLM

    connector = {"kv_connector": "ExampleHiddenStatesConnector"}
    if not torch.cuda.is_available():
        # The stock connector pins memory, which needs CUDA.
        connector = {
            "kv_connector": "CpuHiddenStatesConnector",
            "kv_connector_module_path": "cpu_connector",
        }
    return LLM(
        **{
            "model": options.model or manifest["model"],
            "dtype": options.dtype,
            "tensor_parallel_size": options.tensor_parallel_size,
            "max_model_len": manifest["context_length"] + 1,
            "enforce_eager": not torch.cuda.is_available(),
            "speculative_config": {
                "method": "extract_hidden_states",
                "num_speculative_tokens": 1,
                "draft_model_config": {
                    "hf_config": {"eagle_aux_hidden_state_layer_ids": manifest["layer_ids"]}
                },
            },
            "kv_transfer_config": {
                **connector,
                "kv_role": "kv_producer",
                "kv_connector_extra_config": {"shared_storage_path": str(scratch)},
            },
        }
        | json.loads(options.options)
    )


def written(path):
    """Return a path once its file is complete.

    vLLM holds a lock until then, and leaves the file of the lock behind.
    """
    begin, lock = time.monotonic(), Path(f"{path}.lock")
    while is_held(lock) or not Path(path).exists():
        if time.monotonic() - begin > PATIENCE:
            raise SystemExit(f"error: vLLM did not finish {path} within {PATIENCE:g} s")
        time.sleep(0.01)
    lock.unlink(missing_ok=True)
    return Path(path)


def is_held(lock):
    """Return whether a process holds a lock."""
    if not lock.exists():
        return False
    with open(lock, encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def main():
    """Run the windows that are not done."""
    options = arguments()
    manifest = json.loads((HERE / "states.json").read_text(encoding="utf-8"))
    with open(HERE / "windows.jsonl", encoding="utf-8") as file:
        windows = [json.loads(line) for line in file]
    done_path, scratch = HERE / "numbers.txt", HERE / ".vllm"
    done = set(done_path.read_text().split()) if done_path.exists() else set()
    left = [number for number in range(len(windows)) if str(number) not in done]
    left = left[: options.limit]
    print(f"{len(done)} of {len(windows)} windows are done, {len(left)} are run now", flush=True)
    if not left:
        return
    scratch.mkdir(exist_ok=True)
    for leftover in scratch.iterdir():
        leftover.unlink()  # of a run that was stopped; vLLM may give its name again
    llm = engine(manifest, options, scratch)
    from vllm import SamplingParams

    for begin in range(0, len(left), options.batch):
        numbers = left[begin : begin + options.batch]
        prompts = [{"prompt_token_ids": windows[number]} for number in numbers]
        settings = SamplingParams(temperature=0, max_tokens=1)
        outputs = llm.generate(prompts, settings, use_tqdm=False)
        for number, output in zip(numbers, outputs, strict=True):
            if list(output.prompt_token_ids) != windows[number]:
                raise SystemExit(f"error: vLLM read other tokens than those of window {number}")
            path = written((output.kv_transfer_params or {})["hidden_states_path"])
            # A rename: the harvest never sees a file that is not complete.
            path.replace(HERE / f"{number}.safetensors")
            with open(done_path, "a", encoding="utf-8") as file:
                file.write(f"{number}\n")
        print(f"{begin + len(numbers)} of {len(left)}", flush=True)


if __name__ == "__main__":
    main()
