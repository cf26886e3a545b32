"""PTX, executed on the CPU with the rounding of a GPU: all threads of a launch advance together.

It knows what Triton's pointwise and reduction kernels are made of. An instruction or a form of one that it does not
know raises, as do an access outside of all tensors and a failed assertion. Threads that have come apart meet again,
since those furthest behind go first; so a barrier needs nothing. Registers hold bits, and instructions say what they
mean.

Triton's own interpreter (TRITON_INTERPRET=1) would be less to maintain, but it runs the source before LLVM has
contracted products and sums, and knows no function of libdevice.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
import target

_LIBRARY = target.library()
_DTYPES = {
    f"{kind}{8 * width}": np.dtype(f"{code}{width}")
    for kind, code in (("s", "i"), ("u", "u"), ("b", "u"))
    for width in (1, 2, 4, 8)
}
_DTYPES |= {"f32": np.dtype("f4"), "f64": np.dtype("f8"), "pred": np.dtype(bool)}
_COMPARE = {
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "ne": np.not_equal,
}
_COMPARE |= {"lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal}
# between the threads of a warp, for the caches, or for what is not simulated
_NOTHING = {"bar", "barrier", "fence", "membar", "prefetch", "discard", "applypriority", "createpolicy"}
WARP = 32


class Instruction(NamedTuple):
    guard: str  # a predicate, or ""
    negated: bool
    parts: list[str]  # of the opcode
    operands: list[str]

    def __str__(self) -> str:
        return f"{'.'.join(self.parts)} {', '.join(self.operands)}"


class Program(NamedTuple):
    """A kernel."""

    name: str
    parameters: list[tuple[str, str]]  # type, name
    threads: int  # of a block
    instructions: list[Instruction]
    labels: dict[str, int]
    widths: dict[str, int]  # bits, by the prefix of registers' names


def parse(ptx: str) -> Program:
    """Read the one kernel of a file."""
    ptx = re.sub(r"//[^\n]*|^\s*\.(loc|file)\b[^\n]*", "", ptx, flags=re.MULTILINE)
    entry = re.search(r"\.entry (\w+)\((.*?)\)\s*\.reqntid (\d+)[^{]*\{(.*)", ptx, re.DOTALL)
    name, parameters, threads, body = entry.groups()
    body = body[: body.index("$L__func_end")] if "$L__func_end" in body else body
    instructions, labels, widths = [], {}, {}
    for kind, prefix in re.findall(r"\.reg \.(\w+)\s+(%\w+?)<", body):
        widths[prefix] = 1 if kind == "pred" else int(kind[1:])
    for statement in re.sub(r"(\$\w+:)", r"\1;", body).split(";"):
        statement = statement.strip(" \t\n")
        statement = re.sub(r"^[{}]\s+(?!%)", "", statement).strip("} \t\n") if statement[:1] in "{}" else statement
        if statement.startswith("$") and statement.endswith(":"):
            labels[statement[:-1]] = len(instructions)
        elif statement and not statement.startswith("."):
            instructions.append(_instruction(statement))
    found = re.findall(r"\.param \.(\w+)[^,]*?(\w+_param_\d+)", parameters)
    return Program(name, found, int(threads), instructions, labels, widths)


def _instruction(statement: str) -> Instruction:
    match = re.fullmatch(r"(?:@(!?)(%\w+)\s+)?([a-z][\w.:]*)\s*(.*)", statement, re.DOTALL)
    if match is None:
        raise NotImplementedError(f"PTX: {statement!r}")
    negated, guard, opcode, rest = match.groups()
    operands = re.findall(r"\{[^}]*\}|\[[^\]]*\]|\([^)]*\)|[^,\s{}\[\]()]+", rest)
    return Instruction(guard or "", bool(negated), opcode.replace("::", "_").split("."), operands)


class Memory:
    """The memory of the device: one array, in which tensors lie with gaps that belong to none."""

    def __init__(self, size: int) -> None:
        self.bytes = np.zeros(size, np.uint8)
        self.owned = np.zeros(size, bool)
        self.used = 256

    def allocate(self, size: int) -> int:
        """Return the address of so many bytes; they hold what a forgotten initialization would show: NaN."""
        start = self.used
        self.used = start + -(-(size + 256) // 256) * 256
        if self.used > len(self.bytes):
            raise MemoryError(f"{self.used} bytes of device memory are more than {len(self.bytes)}")
        self.owned[start : start + size] = True
        self.bytes[start : start + size] = 0xFF
        return start

    def places(self, address: np.ndarray, width: int, what: str) -> np.ndarray:
        """Turn addresses into indices of values so wide."""
        address = address.astype(np.int64)
        inside = (address >= 0) & (address + width <= len(self.bytes)) & (address % width == 0)
        if not inside.all() or not (self.owned[address].all() and self.owned[address + width - 1].all()):
            raise MemoryError(f"{what}: an access of {width} bytes outside of all tensors")
        return address // width

    def values(self, width: int) -> np.ndarray:
        return self.bytes.view(f"u{width}")


class Run:
    """One launch of a kernel."""

    def __init__(
        self, program: Program, grid: tuple[int, int, int], arguments: list, memory: Memory, shared: int, order=None
    ):
        self.program, self.memory, self.order = program, memory, order
        threads, blocks = program.threads, grid[0] * grid[1] * grid[2]
        self.n = threads * blocks
        lane = np.arange(self.n)
        block, thread = lane // threads, (lane % threads).astype(np.uint32)
        self.warp_start, self.lane = lane - thread % WARP, thread % WARP
        self.special = {
            "%tid.x": thread,
            "%laneid": self.lane.astype(np.uint32),
            "%ctaid.x": (block % grid[0]).astype(np.uint32),
            "%ctaid.y": (block // grid[0] % grid[1]).astype(np.uint32),
            "%ctaid.z": (block // (grid[0] * grid[1])).astype(np.uint32),
        }
        width = -(-max(shared, 8) // 8) * 8
        self.shared = Memory(width * blocks)
        self.shared.owned[:] = True
        self.shared_start = (block * width).astype(np.uint64)
        self.parameters = {}
        given = [*arguments, *[0] * (len(program.parameters) - len(arguments))]  # scratch that nothing uses
        for (kind, name), value in zip(program.parameters, given, strict=True):
            dtype = _DTYPES[kind]
            value = value % 2 ** (8 * dtype.itemsize) if dtype.kind == "u" else value
            self.parameters[name] = np.full(self.n, value, dtype)
        self.registers: dict[str, np.ndarray] = {}

    def execute(self) -> None:
        end, place = len(self.program.instructions), np.zeros(self.n, np.int64)
        with np.errstate(all="ignore"):
            while (here := int(place.min())) < end:
                active = place == here
                instruction = self.program.instructions[here]
                taken = active
                if instruction.guard:
                    taken = active & (self.registers[instruction.guard] ^ instruction.negated)
                place[active] = here + 1
                if instruction.parts[0] == "bra":
                    place[taken] = self.program.labels[instruction.operands[0]]
                elif instruction.parts[0] in ("ret", "exit"):
                    place[taken] = end
                elif taken.any():
                    self.step(instruction, taken)

    def step(self, instruction: Instruction, active: np.ndarray) -> None:
        kind = instruction.parts[0]
        if kind in ("call", "trap"):
            raise AssertionError(f"{self.program.name}: a failed assertion of the kernel, {instruction}")
        if kind == "createpolicy":
            self.write(instruction.operands[0], np.zeros(self.n, np.uint64), active)
        if kind in _NOTHING or instruction.parts[:2] == ["st", "param"]:
            return
        method = getattr(self, f"_{kind}", None)
        values = None if method is None else method(instruction, active)
        if values is None and kind not in ("st", "red"):
            raise NotImplementedError(f"PTX: {instruction}")
        if values is not None:
            self.write(instruction.operands[0], values, active)

    # --- operands

    def read(self, operand: str, kind: str) -> np.ndarray:
        """The values of an operand, as the type says."""
        dtype = _DTYPES[kind]
        if operand in self.special:
            return self.special[operand].astype(dtype)
        if operand.startswith("%"):
            value = self.registers[operand]
            if value.dtype.itemsize > dtype.itemsize:  # the low bits
                value = value.astype(f"u{dtype.itemsize}")
            return value.view(dtype)
        return np.full(self.n, self._number(operand, dtype))

    def _number(self, text: str, dtype: np.dtype) -> np.generic:
        if text[:2] in ("0d", "0f"):
            bits = np.array(int(text[2:], 16), f"u{8 if text[1] == 'd' else 4}")
            return bits.view(dtype)[()]
        if re.fullmatch(r"-?(0x[0-9a-fA-F]+|\d+)U?", text):
            number = int(text.rstrip("U"), 0)
            return np.array(number % 2 ** (8 * dtype.itemsize), f"u{dtype.itemsize}").view(dtype)[()]
        if text.isidentifier():
            return dtype.type(0)  # the start of shared memory
        raise NotImplementedError(f"PTX: the operand {text}")

    def write(self, operand: str, values: np.ndarray | list, active: np.ndarray) -> None:
        if operand.startswith("{"):
            names = re.findall(r"[%\w]+", operand)
            for name, value in zip(names, values, strict=True):
                self.write(name, value, active)
        elif operand != "_":
            bits = int(self.program.widths.get(re.match(r"%[a-z]+", operand)[0], 0))
            values = values if values.dtype == bool else values.view(f"u{values.dtype.itemsize}")
            if bits > 8 * values.dtype.itemsize:
                values = values.astype(f"u{bits // 8}")
            before = self.registers.get(operand)
            self.registers[operand] = values if before is None or active.all() else np.where(active, values, before)

    def _operands(self, instruction: Instruction, kind: str = "") -> list[np.ndarray]:
        return [self.read(operand, kind or instruction.parts[-1]) for operand in instruction.operands[1:]]

    def _address(self, operand: str) -> np.ndarray:
        base, offset = re.fullmatch(r"\[\s*(%?\w+)\s*(?:\+\s*(-?\d+)\s*)?\]", operand).groups()
        kind = "u64" if self.program.widths.get(re.match(r"%?[a-z]+", base)[0]) == 64 else "u32"
        return self.read(base, kind).astype(np.uint64) + np.uint64(int(offset or 0) % 2**64)

    # --- memory

    def _ld(self, instruction: Instruction, active: np.ndarray) -> np.ndarray | list | None:
        parts, (target_, source, *_) = instruction.parts, instruction.operands
        if parts[1] == "param":
            return self.parameters[source.strip("[]")]
        count, dtype = self._count(parts), _DTYPES[parts[-1]]
        found = []
        for i in range(count):
            places, memory = self._places(instruction, source, active, i * dtype.itemsize, dtype.itemsize)
            value = np.zeros(self.n, f"u{dtype.itemsize}")
            value[active] = memory.values(dtype.itemsize)[places]
            found.append(value)
        return found if target_.startswith("{") else found[0]

    def _st(self, instruction: Instruction, active: np.ndarray) -> None:
        parts, (place, source, *_) = instruction.parts, instruction.operands
        dtype = _DTYPES[parts[-1]]
        names = re.findall(r"[%\w-]+", source)
        assert len(names) == self._count(parts)
        for i, name in enumerate(names):
            places, memory = self._places(instruction, place, active, i * dtype.itemsize, dtype.itemsize)
            bits = self.read(name, parts[-1]).view(f"u{dtype.itemsize}")
            memory.values(dtype.itemsize)[places] = bits[active]

    @staticmethod
    def _count(parts: list[str]) -> int:
        return next((int(part[1:]) for part in parts if re.fullmatch(r"v\d", part)), 1)

    def _places(self, instruction, operand, active, offset, width):
        address = self._address(operand) + np.uint64(offset)
        if instruction.parts[1] == "shared":
            memory, address = self.shared, address + self.shared_start
        elif instruction.parts[1] == "global":
            memory = self.memory
        else:
            raise NotImplementedError(f"PTX: {instruction}")
        return memory.places(address[active], width, f"{self.program.name}, {instruction}"), memory

    def _atom(self, instruction: Instruction, active: np.ndarray) -> np.ndarray | None:
        """Additions, one thread after the other, in the order asked for."""
        parts, (_, place, term) = instruction.parts, instruction.operands
        if parts[-2:] != ["add", "f64"]:
            return None
        (places, memory), before = self._places(instruction, place, active, 0, 8), np.zeros(self.n)
        threads = np.flatnonzero(active)
        numbers, terms = memory.values(8).view(np.float64), self.read(term, "f64")
        for i in range(len(threads)) if self.order is None else self.order.permutation(len(threads)):
            before[threads[i]] = numbers[places[i]]
            numbers[places[i]] += terms[threads[i]]
        return before

    def _red(self, instruction: Instruction, active: np.ndarray) -> None:
        if self._atom(instruction._replace(operands=["_", *instruction.operands]), active) is None:
            raise NotImplementedError(f"PTX: {instruction}")

    def _shfl(self, instruction: Instruction, active: np.ndarray) -> np.ndarray | None:
        mode, (_, source, by, bounds, _) = instruction.parts[2], instruction.operands
        if bounds != "31" or mode not in ("bfly", "idx"):
            return None
        step = self.read(by, "u32") % WARP
        other = self.lane ^ step if mode == "bfly" else step
        return self.read(source, "b32")[self.warp_start + other]

    # --- arithmetic

    def _binary(self, instruction: Instruction, function, floats: bool = True) -> np.ndarray | None:
        kind = instruction.parts[-1]
        plain = set(instruction.parts[1:-1]) <= {"rn", "lo"}  # no flush to zero, no approximation, no saturation
        if not plain or kind not in _DTYPES or (kind[0] == "f" and not floats):
            return None
        a, b = self._operands(instruction)
        return function(a, b)

    def _add(self, instruction, _):
        return self._binary(instruction, np.add)

    def _sub(self, instruction, _):
        return self._binary(instruction, np.subtract)

    def _and(self, instruction, _):
        return self._binary(instruction, np.bitwise_and)

    def _or(self, instruction, _):
        return self._binary(instruction, np.bitwise_or)

    def _xor(self, instruction, _):
        return self._binary(instruction, np.bitwise_xor)

    def _mul(self, instruction, _):
        if instruction.parts[1] == "wide":
            return self._wide(instruction)
        if instruction.parts[1] == "hi":
            width = 8 * _DTYPES[instruction.parts[-1]].itemsize
            a, b = (value.astype(object) for value in self._operands(instruction))
            return ((a * b >> width) % 2**width).astype(f"u{width // 8}")
        return self._binary(instruction, np.multiply)

    def _wide(self, instruction):
        a, b = self._operands(instruction._replace(operands=instruction.operands[:3]))
        wide = f"{a.dtype.kind}{2 * a.dtype.itemsize}"
        return a.astype(wide) * b.astype(wide)

    def _mad(self, instruction, _):
        mode, kind, last = instruction.parts[1], instruction.parts[-1], instruction.operands[3]
        if mode == "wide":
            return self._wide(instruction) + self.read(last, f"{kind[0]}{2 * int(kind[1:])}")
        a, b, c = self._operands(instruction)
        return a * b + c if mode == "lo" else None

    def _fma(self, instruction, _):
        if instruction.parts[1:] not in (["rn", "f64"], ["rn", "f32"]):
            return None
        values = [np.ascontiguousarray(value) for value in self._operands(instruction)]
        out = np.empty_like(values[0])
        function = getattr(_LIBRARY, f"fma_{instruction.parts[-1]}")
        function(*(target.ctypes.c_void_p(x.ctypes.data) for x in (*values, out)), target.ctypes.c_long(self.n))
        return out

    def _div(self, instruction, _):
        kind = instruction.parts[-1]
        if kind[0] == "f":
            return self._binary(instruction, np.divide) if "rn" in instruction.parts else None
        return self._whole(instruction)[0]

    def _rem(self, instruction, _):
        return self._whole(instruction)[1]

    def _whole(self, instruction):
        """Quotient, toward zero, and rest."""
        a, b = self._operands(instruction)
        b = np.where(b == 0, b.dtype.type(1), b)
        quotient = a // b
        quotient = quotient + ((quotient * b != a) & ((a < 0) != (b < 0))).astype(a.dtype)
        return quotient, a - quotient * b

    def _min(self, instruction, _):
        return self._binary(instruction, lambda a, b: self._extreme(a, b, np.fmin, np.bitwise_or))

    def _max(self, instruction, _):
        return self._binary(instruction, lambda a, b: self._extreme(a, b, np.fmax, np.bitwise_and))

    @staticmethod
    def _extreme(a, b, function, of_zeros):
        """A number where one is NaN; -0 is less than +0."""
        if a.dtype.kind != "f":
            return function(a, b)
        bits = f"u{a.dtype.itemsize}"
        return np.where((a == 0) & (b == 0), of_zeros(a.view(bits), b.view(bits)).view(a.dtype), function(a, b))

    def _unary(self, instruction, function) -> np.ndarray | None:
        if set(instruction.parts[1:-1]) - {"rn"}:
            return None
        return function(*self._operands(instruction))

    def _abs(self, instruction, _):
        if instruction.parts[1:] == ["ftz", "f32"]:  # flushed to zero: libdevice asks so whether a number is NaN
            (size,) = np.abs(self._operands(instruction))[:1]
            return np.where(size < np.finfo(np.float32).tiny, np.float32(0), size)
        return self._unary(instruction, np.abs)

    def _neg(self, instruction, _):
        return self._unary(instruction, np.negative)

    def _not(self, instruction, _):
        return self._unary(instruction, np.invert)

    def _sqrt(self, instruction, _):
        return self._unary(instruction, np.sqrt) if "rn" in instruction.parts else None

    def _shl(self, instruction, _):
        return self._shifted(instruction, np.left_shift)

    def _shr(self, instruction, _):
        return self._shifted(instruction, np.right_shift)

    def _shifted(self, instruction, function):
        kind = instruction.parts[-1]
        value, by = self.read(instruction.operands[1], kind), self.read(instruction.operands[2], "u32")
        bits = 8 * value.dtype.itemsize
        beyond = by >= bits
        shifted = function(value, np.where(beyond, bits - 1, by).astype(value.dtype))
        if function is np.right_shift and kind[0] == "s":
            return shifted
        return np.where(beyond, value.dtype.type(0), shifted)

    def _bfe(self, instruction, _):
        if instruction.parts[-1] != "u32":
            return None
        value, start, length = self._operands(instruction)
        return value >> start & ((np.uint32(1) << length) - np.uint32(1))

    def _setp(self, instruction, _):
        _, comparison, *combined, kind = instruction.parts
        if combined not in ([], ["and"], ["or"]) or len(instruction.operands) != 3 + len(combined):
            return None
        a, b = (self.read(operand, kind) for operand in instruction.operands[1:3])
        unordered = np.isnan(a) | np.isnan(b) if kind[0] == "f" else np.zeros(self.n, bool)
        if comparison in ("num", "nan"):
            holds = unordered if comparison == "nan" else ~unordered
        elif kind[0] == "f" and comparison[:-1] in _COMPARE and comparison.endswith("u"):
            holds = _COMPARE[comparison[:-1]](a, b) | unordered
        else:
            holds = _COMPARE[comparison](a, b) & ~unordered  # a missing NaN is not "not equal" to anything
        if combined:
            other = self.registers[instruction.operands[3]]
            holds = holds & other if combined == ["and"] else holds | other
        return holds

    def _selp(self, instruction, _):
        yes, no = (self.read(operand, instruction.parts[-1]) for operand in instruction.operands[1:3])
        return np.where(self.registers[instruction.operands[3]], yes, no)

    def _mov(self, instruction, _):
        kind, (to, source) = instruction.parts[-1], instruction.operands
        if to.startswith("{"):
            names = re.findall(r"[%\w]+", to)
            width = _DTYPES[kind].itemsize // len(names)
            parts = self.read(source, kind).view(f"u{width}").reshape(self.n, len(names))
            return [np.ascontiguousarray(part) for part in parts.T]
        if source.startswith("{"):
            names = re.findall(r"[%\w]+", source)
            part = f"b{8 * _DTYPES[kind].itemsize // len(names)}"
            parts = np.stack([self.read(name, part) for name in names], -1)
            return np.ascontiguousarray(parts).view(f"u{_DTYPES[kind].itemsize}").reshape(self.n)
        return self.read(source, kind)

    def _cvta(self, instruction, _):
        return self.read(instruction.operands[1], "u64")

    def _cvt(self, instruction, _):
        *modes, to, of = instruction.parts[1:]
        if len(modes) > 1 or to not in _DTYPES or of not in _DTYPES:
            return None
        value, dtype, mode = self.read(instruction.operands[1], of), _DTYPES[to], modes[0] if modes else ""
        if mode in ("rmi", "rpi", "rzi", "rni"):
            value = {"rmi": np.floor, "rpi": np.ceil, "rzi": np.trunc, "rni": np.rint}[mode](value)
            if dtype.kind == "f":
                return value.astype(dtype) if to == of else None
            info = np.iinfo(dtype)  # what lies beyond becomes the nearest, NaN becomes 0
            low, high = value <= info.min, value >= float(info.max)
            inside = np.where(low | high | np.isnan(value), 0, value).astype(dtype)
            return np.where(low, info.min, np.where(high, info.max, inside)).astype(dtype)
        if mode in ("", "rn") and (mode == "rn") == (dtype.kind == "f" and (value.dtype.kind != "f" or to == "f32")):
            return value.astype(dtype)
        return None
