"""llama.cpp's converter, ours and untouched, for many small models: one process pays for its imports."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tools import Failed
from tools.core import files, run_folder
from tools.gguf import convert, llamacpp

# Reads jobs, one a line, each in a child: {"ours": what converter_hook.py is asked} or {"argv": the converter's own};
# with "bare", without the vocabulary, which takes most of the time.
PROGRAM = """import json, os, runpy, sys
import bitsandbytes, conversion.llama, conversion.qwen, conversion.gemma, conversion.phi
import conversion.qwenvl, transformers
from transformers import AutoTokenizer
from tools.gguf import converter_hook
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if not child:
        if job["bare"]:
            for each in (conversion.llama.LlamaModel, conversion.qwen.Qwen2Model, conversion.qwen.Qwen3Model,
                         conversion.gemma.Gemma2Model, conversion.gemma.Gemma3Model, conversion.phi.Phi3MiniModel,
                         conversion.qwenvl.Qwen2VLModel):
                each.set_vocab = lambda self: None
        sys.argv = ["", json.dumps(job["ours"])] if "ours" in job else job["argv"]
        converter_hook.main() if "ours" in job else runpy.run_path(sys.argv[0], run_name="__main__")
        sys.stdout.flush()
        os._exit(0)
    print(json.dumps({"status": os.waitpid(child, 0)[1]}), flush=True)
"""


class Converters:
    """Runs conversions, ours and the untouched converter's, without paying for their imports each time."""

    def __init__(self, log: Path) -> None:
        source = llamacpp.source()
        paths = os.pathsep.join([str(source / "gguf-py"), str(source), str(run_folder.ROOT)])
        environment = {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
        self.log, self.script = log, str(source / "convert_hf_to_gguf.py")
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
            env=environment,
        )

    def do(self, job: dict[str, Any]) -> str:
        """Do one job; what it said when it failed, else nothing."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{json.dumps(job)}\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith('{"status"'):
                status = json.loads(line)["status"]
                return self.log.read_text().strip().splitlines()[-1] if status else ""
        return self.log.read_text()

    def theirs(self, folder: Path, out: Path, kind: str, bare: bool) -> None:
        """Convert a folder as llama.cpp does."""
        argv = [self.script, str(folder), "--outfile", str(out), "--outtype", kind]
        assert self.do({"argv": argv, "bare": bare}) == ""

    def ours(self, folder: Path, out: Path, adapter: Path | None, quant: str, bare: bool = False) -> str:
        """Convert a folder and its adapter as gguf.py asks for it."""
        work = out.with_name(f"{out.name}.parts")
        files.remove(work)
        return self.do({"ours": convert.request(folder, out, {}, adapter, quant, work), "bare": bare})

    def one_pass(self, asked: convert.Request) -> None:
        """In place of `convert.one_pass`. Raises Failed with the converter's own words."""
        with files.atomic(Path(asked["out"])) as partial:
            if why := self.do({"ours": {**asked, "out": str(partial)}, "bare": False}):
                raise Failed(why)

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
