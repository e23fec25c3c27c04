"""`python -m picker --replicas HOST:PORT [--replicas HOST:PORT ...]`: serves ext_proc until SIGTERM."""

import argparse
import asyncio
import logging
import random
import signal
from typing import Final

import grpc
from envoy.service.ext_proc.v3.external_processor_pb2_grpc import add_ExternalProcessorServicer_to_server

from picker.replicas import Replicas
from picker.service import Picker

_MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024  # over what the gateway holds of a body


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m picker", description=__doc__)
    parser.add_argument("--replicas", action="append", required=True, metavar="HOST:PORT", help="may be repeated")
    parser.add_argument("--listen", default="0.0.0.0:9002", metavar="HOST:PORT", help="[%(default)s]")
    parser.add_argument("--interval-s", type=float, default=0.2, help="between two looks at a replica [%(default)s]")
    parser.add_argument("--seed", type=int, help="of the choice between equals; by default any")
    asked = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each look
    asyncio.run(_serve(asked))


async def _serve(asked: argparse.Namespace) -> None:
    replicas = Replicas(asked.replicas, interval_s=asked.interval_s)
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES)])
    add_ExternalProcessorServicer_to_server(Picker(replicas, random.Random(asked.seed)), server)
    server.add_insecure_port(asked.listen)
    ending = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, ending.set)
    async with asyncio.TaskGroup() as group:  # ends with an error when the watching does: then there is no picker
        watching = group.create_task(replicas.watch())
        await replicas.looked.wait()
        await server.start()
        await ending.wait()
        await server.stop(grace=1)
        watching.cancel()


if __name__ == "__main__":
    main()
