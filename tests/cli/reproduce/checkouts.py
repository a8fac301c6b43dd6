"""A user's code under git, and what it trains."""

from __future__ import annotations

import subprocess
from pathlib import Path

from hpcexp.files.atomic import sha256

NET = """
    from {part} import WIDTH
    from hpcexp.models.mlp import MLP

    class Net(MLP):
        def __init__(self, in_shape, num_classes):
            super().__init__(in_shape, num_classes, hidden=[WIDTH])
"""


KILL = """
    import os, signal
    from pathlib import Path
    from pytorch_lightning import Callback

    class Kill(Callback):
        def __init__(self, mark):
            self.mark = Path(mark)

        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 4 and not self.mark.exists():
                self.mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
"""


STALL = """
    import os, time
    from pathlib import Path
    from pytorch_lightning import Callback

    class Stall(Callback):
        def on_train_start(self, *_):
            if mark := os.environ.get("STALLED"):
                Path(mark).touch()
                time.sleep(60)
"""


SHARDED = """
    from pathlib import Path
    from hpcexp.data.digits import Digits
    from hpcexp.data.source import DataFile, Tensors

    class Sharded(Digits):
        def files(self):
            return [DataFile(path, 1) for path in sorted(Path("shards").glob("*"))]

        def load(self, split):
            whole = super().load(split)
            scale = sum(float(file.path.read_text()) for file in self.files())
            return Tensors(whole.inputs * scale, whole.targets)
"""


MODEL = ("~model", "+model._target_=net_0.Net")


def git(place: Path, *arguments: str) -> str:
    """What git says."""
    me = ("-c", "user.name=Ada", "-c", "user.email=ada@localhost", "-c", "init.defaultBranch=main")
    return subprocess.run(["git", *me, *arguments], cwd=place, check=True, capture_output=True, text=True).stdout


def content(place: Path) -> dict[str, str]:
    """Every file below a directory, but for what git keeps of itself."""
    return {str(f): sha256(f) for f in place.rglob("*") if f.is_file() and not {".git", "__pycache__"} & {*f.parts}}
