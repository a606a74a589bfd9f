//! Decoded instructions. Every operand is the index of a row of 32 lanes: constants and special registers
//! have rows of their own, filled before a warp starts, so that execution knows one kind of operand.

/// Index of a row of 32-bit lanes (16-bit values lie in the low half, the rest is zero), of 64-bit lanes,
/// or of a predicate (one word, a bit a lane).
pub type Row = u32;

/// No register: a discarded result, an absent operand.
pub const NONE: Row = u32::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Register {
    Word(Row),
    Double(Row),
    Predicate(Row),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    U8,
    S8,
    B8,
    U16,
    S16,
    B16,
    U32,
    S32,
    B32,
    U64,
    S64,
    B64,
    F16,
    F16x2,
    F32,
    F64,
    Pred,
}

impl Type {
    pub fn parse(s: &str) -> Option<Self> {
        use Type::*;
        Some(match s {
            "u8" => U8,
            "s8" => S8,
            "b8" => B8,
            "u16" => U16,
            "s16" => S16,
            "b16" => B16,
            "u32" => U32,
            "s32" => S32,
            "b32" => B32,
            "u64" => U64,
            "s64" => S64,
            "b64" => B64,
            "f16" => F16,
            "f16x2" => F16x2,
            "f32" => F32,
            "f64" => F64,
            "pred" => Pred,
            _ => return None,
        })
    }

    pub fn bytes(self) -> usize {
        use Type::*;
        match self {
            U8 | S8 | B8 | Pred => 1,
            U16 | S16 | B16 | F16 => 2,
            U32 | S32 | B32 | F32 | F16x2 => 4,
            U64 | S64 | B64 | F64 => 8,
        }
    }

    pub fn signed(self) -> bool {
        matches!(self, Type::S8 | Type::S16 | Type::S32 | Type::S64)
    }

    pub fn float(self) -> bool {
        matches!(self, Type::F16 | Type::F32 | Type::F64)
    }

    /// Whether a register of it has 64-bit lanes.
    pub fn double(self) -> bool {
        self.bytes() == 8
    }
}

/// Integer types that arithmetic knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Int {
    U16,
    S16,
    U32,
    S32,
    U64,
    S64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Int2 {
    Add,
    Sub,
    Mul,
    MulHi,
    Div,
    Rem,
    Min,
    Max,
    And,
    Or,
    Xor,
    Shl,
    Shr,
    AddSat,
    SubSat,
    Mul24,
}

/// The result of `Popc`, `Clz` and the `Bfind`s is a word whatever the type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Int1 {
    Not,
    Cnot,
    Neg,
    Abs,
    Brev,
    Popc,
    Clz,
    Bfind,
    BfindShift,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Float2 {
    Add,
    Sub,
    Mul,
    Div,
    Min,
    Max,
    MinNan,
    MaxNan,
    CopySign,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Float1 {
    Neg,
    Abs,
    Sqrt,
    Rcp,
    Rsqrt,
    Ex2,
    Lg2,
    Sin,
    Cos,
    Tanh,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Round {
    Nearest,
    Zero,
    Down,
    Up,
}

/// How a float operation treats its result: rounding, denormals to zero, clamped to 0..1 (NaN to 0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    pub round: Round,
    pub ftz: bool,
    pub sat: bool,
    /// Negative results and NaN: 0 (of `fma.relu`).
    pub relu: bool,
}

impl Mode {
    pub fn plain(self) -> bool {
        self.round == Round::Nearest && !self.ftz && !self.sat && !self.relu
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compare {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    Equ,
    Neu,
    Ltu,
    Leu,
    Gtu,
    Geu,
    Num,
    Nan,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logic {
    And,
    Or,
    Xor,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    Generic,
    Global,
    Shared,
    Local,
    Param,
}

/// `base + offset`; `base` is `NONE` for a constant address, else a row of words or of doubles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    pub base: Row,
    pub double: bool,
    pub offset: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Atomic {
    Add,
    AddFloat,
    Min,
    Max,
    MinSigned,
    MaxSigned,
    And,
    Or,
    Xor,
    Exchange,
    Compare,
    Inc,
    Dec,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shuffle {
    Up,
    Down,
    Xor,
    Index,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vote {
    Ballot,
    Any,
    All,
    Uniform,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduce {
    No,
    Popc,
    And,
    Or,
}

// One line a form.
#[rustfmt::skip]
#[derive(Clone, Debug)]
pub enum Op {
    Nop,
    Int2 { op: Int2, ty: Int, d: Row, a: Row, b: Row },
    Int1 { op: Int1, ty: Int, d: Row, a: Row },
    /// `d = low or high half of a·b, + c`
    Mad { high: bool, ty: Int, d: Row, a: Row, b: Row, c: Row },
    /// `d = a·b (+ c)`, twice as wide.
    Wide { ty: Int, d: Row, a: Row, b: Row, c: Row },
    /// Sum or difference with the carry flag: read it, write it.
    Carry { subtract: bool, reads: bool, writes: bool, double: bool, d: Row, a: Row, b: Row },
    MadCarry { high: bool, signed: bool, reads: bool, writes: bool, d: Row, a: Row, b: Row, c: Row },
    Bfe { ty: Int, d: Row, a: Row, b: Row, c: Row },
    Bfi { double: bool, d: Row, a: Row, b: Row, c: Row, e: Row },
    Bmsk { d: Row, a: Row, b: Row, clamp: bool },
    Szext { d: Row, a: Row, b: Row, signed: bool },
    Sad { ty: Int, d: Row, a: Row, b: Row, c: Row },
    Dp4a { d: Row, a: Row, b: Row, c: Row, signed_a: bool, signed_b: bool },
    Prmt { d: Row, a: Row, b: Row, c: Row },
    Lop3 { d: Row, a: Row, b: Row, c: Row, table: u8 },
    Shf { left: bool, clamp: bool, d: Row, a: Row, b: Row, c: Row },
    F32 { op: Float2, mode: Mode, d: Row, a: Row, b: Row },
    F32One { op: Float1, mode: Mode, d: Row, a: Row },
    F32Fma { mode: Mode, d: Row, a: Row, b: Row, c: Row },
    F64 { op: Float2, d: Row, a: Row, b: Row },
    F64One { op: Float1, d: Row, a: Row },
    F64Fma { d: Row, a: Row, b: Row, c: Row },
    Half2 { op: Float2, packed: bool, mode: Mode, d: Row, a: Row, b: Row },
    HalfOne { op: Float1, packed: bool, d: Row, a: Row },
    HalfFma { packed: bool, mode: Mode, d: Row, a: Row, b: Row, c: Row },
    /// `p = a cmp b`, `q = !(a cmp b)`, each combined with a third predicate.
    Setp { cmp: Compare, ty: Type, p: Row, q: Row, a: Row, b: Row, combine: Option<(Logic, Row, bool)> },
    /// All bits or 1.0 where it holds.
    Set { cmp: Compare, to: Type, ty: Type, d: Row, a: Row, b: Row, combine: Option<(Logic, Row, bool)> },
    Testp { test: Test, double: bool, p: Row, a: Row },
    Selp { double: bool, d: Row, a: Row, b: Row, p: Row, negate: bool },
    Slct { double: bool, float: bool, d: Row, a: Row, b: Row, c: Row },
    Logic { op: Logic, d: Row, a: Row, b: Row },
    PredNot { d: Row, a: Row },
    PredMove { d: Row, a: Row },
    Move { double: bool, d: Row, a: Row },
    Clock { double: bool, d: Row },
    /// Words into a double: low, high.
    Join { d: Row, a: Row, b: Row },
    Split { a: Row, d: Row, e: Row },
    /// Halves into a word.
    JoinHalves { d: Row, a: Row, b: Row },
    SplitHalves { a: Row, d: Row, e: Row },
    JoinFour { d: Row, a: [Row; 4] },
    SplitFour { a: Row, d: [Row; 4] },
    Convert { to: Type, from: Type, d: Register, a: Register, rounding: Rounding, sat: bool, ftz: bool },
    /// Two floats to packed halves: `a` high, `b` low.
    ConvertPair { d: Row, a: Row, b: Row, relu: bool },
    Load { space: Space, ty: Type, count: u8, double: bool, d: [Row; 4], at: Address },
    Store { space: Space, ty: Type, count: u8, double: bool, a: [Row; 4], at: Address },
    Atomic { space: Space, op: Atomic, ty: Type, d: Row, at: Address, a: Row, b: Row },
    /// From the generic space to another one and back.
    Cvta { space: Space, to: bool, d: Row, a: Row, double: bool },
    IsSpace { space: Space, p: Row, a: Row },
    Shuffle { mode: Shuffle, d: Row, p: Row, a: Row, b: Row, c: Row, mask: Row },
    Vote { kind: Vote, d: Row, a: Row, negate: bool, mask: Row },
    Match { all: bool, double: bool, d: Row, p: Row, a: Row, mask: Row },
    Redux { op: Int2, signed: bool, d: Row, a: Row, mask: Row },
    ActiveMask { d: Row },
    LdMatrix { count: u8, transposed: bool, d: [Row; 4], at: Address },
    /// `k` is 8 or 16.
    Mma { k: u8, d: [Row; 4], a: [Row; 4], b: [Row; 2], c: [Row; 4] },
    CopyAsync { bytes: u8, to: Address, from: Address, source_bytes: Row, ignore: Row },
    CopyCommit,
    /// Until at most so many groups are under way; `None`: none, committed or not.
    CopyWait { left: Option<u32> },
    WarpBarrier { mask: Row },
    /// `count` `NONE`: all threads of the block. `arrive`: does not wait.
    Barrier { id: Row, count: Row, arrive: bool, reduce: Reduce, d: Row, p: Row, negate: bool },
    Branch { to: u32 },
    BranchIndex { table: Vec<u32>, a: Row },
    Return,
    Exit,
    Trap,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Test {
    Finite,
    Infinite,
    Number,
    NotANumber,
    Normal,
    Subnormal,
}

/// Of conversions: to the nearest even, to zero, down, up; `integral` rounds to an integer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rounding {
    pub round: Round,
    pub integral: bool,
}

/// What the counters count it as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    Integer,
    Float,
    Half,
    Memory,
    Control,
    Special,
    Mma,
}

#[derive(Clone, Debug)]
pub struct Instruction {
    pub op: Op,
    /// The predicate it depends on, or `NONE`.
    pub guard: Row,
    pub negate: bool,
    pub class: Class,
    /// Index into the kernel's places.
    pub place: u32,
}
