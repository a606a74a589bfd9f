"""A PLC for the tests: modbus_server.py PORT LOG

Coils and holding registers from 0 behind Modbus/TCP, by pymodbus. After each write it appends one line of
JSON to LOG: the time in nanoseconds since 1970, three coils and ten registers as they are then. The first
line says that it listens.
"""

import asyncio
import json
import logging
import sys
import time

from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

port, log = int(sys.argv[1]), open(sys.argv[2], "a", buffering=1)
logging.disable(logging.CRITICAL)
coils, registers = [False] * 16, [0] * 32


def tell():
    state = {"t": time.time_ns(), "coils": coils[:3], "registers": registers[:10]}
    log.write(json.dumps(state) + "\n")


def seen(sending, pdu):
    """Called with each question and each answer; a question is carried out in between, whole."""
    if not sending and pdu.function_code == 15:
        coils[pdu.address : pdu.address + pdu.count] = [bool(b) for b in pdu.bits[: pdu.count]]
        tell()
    elif not sending and pdu.function_code == 16:
        registers[pdu.address : pdu.address + len(pdu.registers)] = pdu.registers
        tell()
    return pdu


def block(kind, values):
    return [SimData(0, values=values, datatype=kind)]


async def main():
    bits, words = lambda: block(DataType.BITS, [False] * 16), lambda: block(DataType.REGISTERS, [0] * 32)
    device = SimDevice(0, simdata=(bits(), bits(), words(), words()))
    server = ModbusTcpServer(device, address=("127.0.0.1", port), trace_pdu=seen)
    await server.serve_forever(background=True)
    tell()
    await asyncio.Event().wait()


asyncio.run(main())
