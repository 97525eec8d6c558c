"""Coverage-guided fuzzing of manifests and Python state, with atheris.

    python tests/fuzz/fuzz_checkpoint.py SCRATCH [libFuzzer options, e.g. -max_total_time=600]

The first byte of an input says what it is: bytes of a manifest, bytes of an objects file, or a choice of places in an
honest manifest and of what to put there.
"""

import logging
import sys
from pathlib import Path

import atheris

sys.path.append(str(Path(__file__).resolve().parent))

with atheris.instrument_imports(include=["datastates.manifest", "datastates.typed_json", "datastates.reader"]):
    from hostile import HOSTILE_VALUES, Target, places, replace_at, signed, signed_bytes


def change_places(target: Target, data: atheris.FuzzedDataProvider) -> None:
    """Put hostile or random values at up to four places of an honest manifest."""
    changed = target.copy()
    for _ in range(data.ConsumeIntInRange(1, 4)):
        path = data.PickValueInList(places(changed))
        choices = [
            data.PickValueInList(list(HOSTILE_VALUES)),
            data.ConsumeInt(9),
            data.ConsumeUnicodeNoSurrogates(12),
            data.ConsumeIntList(3, 8),
        ]
        replace_at(changed, path, data.PickValueInList(choices))
        if not places(changed):
            break
    target.read_with(signed(changed))


def main() -> None:
    logging.getLogger("datastates").setLevel(logging.CRITICAL)
    target = Target(Path(sys.argv.pop(1)))

    def one_input(raw: bytes) -> None:
        data = atheris.FuzzedDataProvider(raw)
        kind = data.ConsumeIntInRange(0, 2)
        if kind == 0:
            target.read_with(signed_bytes(data.ConsumeBytes(4096)))
        elif kind == 1:
            target.with_objects(data.ConsumeBytes(4096))
        else:
            change_places(target, data)

    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
