"""Nothing readable in the database: every stored payload is encrypted with AES-GCM, under keys that rotate.

A codec is bytes to bytes. This one writes the number of the key, a random nonce, and the sealed JSON; and it
seals in the context, the identity of the row, so that nobody who can write to the tables can move a payload
from one row to another. Old keys stay in the ring for as long as there are rows that they have sealed: the
new one seals, any of them opens.

    pip install cryptography
    python examples/encryption/encryption.py

Ids of workflows, topics, keys, names of steps and attributes are not payloads: they are stored as they are,
for the database looks for them. What comes from SQL functions has been through no codec; this one refuses it.
"""

import asyncio
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

import holdfast as hf

NONCE = 12
"""Bytes: 96 bits, fresh for every payload. One key may seal some 2**32 payloads; rotate long before."""


class Encryption:
    """A `Settings.codec`: AES-256-GCM with a ring of keys by number, of which one seals."""

    def __init__(self, keys: Mapping[int, bytes], sealing: int) -> None:
        self._keys = {number: AESGCM(key) for number, key in keys.items()}
        self._sealing = sealing

    def encode(self, data: bytes, context: hf.PayloadContext) -> bytes:
        nonce = os.urandom(NONCE)
        sealed = self._keys[self._sealing].encrypt(nonce, data, _identity(context))
        return bytes([self._sealing]) + nonce + sealed

    def decode(self, data: bytes, context: hf.PayloadContext) -> bytes:
        # A key that is not here, or a payload of another row: what is raised parks the workflow, it does not
        # fail it, until a process with the right keys takes it.
        nonce = data[1 : 1 + NONCE]
        return self._keys[data[0]].decrypt(nonce, data[1 + NONCE :], _identity(context))


def _identity(context: hf.PayloadContext) -> bytes:
    """The same bytes for the same row, and for no other."""
    return msgspec.json.encode([context.schema, context.workflow_id, context.kind, context.name])


class Compression:
    """A `Settings.codec` in front of another: compresses what is worth it. Lengths then tell something of the
    content; leave it out where whoever reads the tables can also choose a part of what is stored.
    """

    def __init__(self, inner: Encryption, least: int = 1024) -> None:
        self._inner = inner
        self._least = least

    def encode(self, data: bytes, context: hf.PayloadContext) -> bytes:
        packed = b"z" + zlib.compress(data) if len(data) >= self._least else b"-" + data
        return self._inner.encode(packed, context)

    def decode(self, data: bytes, context: hf.PayloadContext) -> bytes:
        packed = self._inner.decode(data, context)
        return zlib.decompress(packed[1:]) if packed[:1] == b"z" else packed[1:]


@dataclass
class Patient:
    name: str
    history: list[str]


diagnosis = hf.Event[str]("diagnosis")
results = hf.Topic[str]("results")


@hf.step
async def examine(patient: Patient) -> str:
    return f"{patient.name} after {len(patient.history)} visits"


@hf.workflow
async def treatment(patient: Patient) -> str:
    await diagnosis.set(await examine(patient))
    return f"{patient.name}: {await results.recv()}"


async def main() -> None:
    first, second = os.urandom(32), os.urandom(32)  # of a key service, in earnest; never in the database
    before = hf.Settings(codec=Compression(Encryption({1: first}, sealing=1)))
    after = hf.Settings(codec=Compression(Encryption({1: first, 2: second}, sealing=2)))
    patient = Patient("Ada", ["cough"] * 500)

    async with hf.Runtime(workflows=[treatment], settings=before) as rt:
        handle = await rt.start(treatment(patient), id="treatment-1")
        print("with the key:    ", await handle.get(diagnosis))
        async with hf.Client() as stranger:
            try:
                await stranger.get_event(handle.id, diagnosis)
            except hf.PayloadCodecError as error:
                print("without it:      ", error)

    # Deployed anew: a second key seals from now on, and the first still opens what it has sealed.
    async with hf.Runtime(workflows=[treatment], settings=after) as rt:
        handle = rt.handle(treatment, "treatment-1")
        await handle.send(results, "all is well")
        print("after a rotation:", await handle.result())


if __name__ == "__main__":
    asyncio.run(main())
