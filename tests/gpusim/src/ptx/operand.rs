//! Operands: names to registers, constants and addresses.

use std::collections::HashMap;

use super::Value;
use super::instruction::{Address, NONE, Register, Row, Type};
use super::lexer::Token;

/// An operand as written.
#[derive(Clone, Debug)]
pub enum Operand<'a> {
    Name(&'a str),
    /// An integer, or the bits of a float with its width (4 or 8).
    Number(u64, u8),
    Vector(Vec<Operand<'a>>),
    At(Option<&'a str>, i64),
    Not(&'a str),
    Pair(&'a str, &'a str),
}

/// What a name in a kernel stands for.
#[derive(Clone, Copy, Debug)]
pub enum Symbol {
    Shared(u64),
    Dynamic,
    Local(u64),
    Param(u64),
    Global(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Width {
    Word,
    Double,
    Predicate,
}

/// Names of one kernel, and the rows they got.
#[derive(Debug, Default)]
pub struct Names<'a> {
    /// Innermost scope last: `name` or, for `%r<100>`, its prefix, to width, first row and count.
    pub(super) scopes: Vec<HashMap<&'a str, (Width, Row, u32)>>,
    pub symbols: HashMap<&'a str, Symbol>,
    pub(super) constants: HashMap<(Width, Value), Row>,
    pub list: Vec<(Register, Value)>,
    pub words: Row,
    pub doubles: Row,
    pub predicates: Row,
    pub uses_globals: bool,
}

fn width(ty: Type) -> Width {
    match ty {
        Type::Pred => Width::Predicate,
        _ if ty.double() => Width::Double,
        _ => Width::Word,
    }
}

fn special(name: &str) -> Option<Value> {
    let axis = |axis: &str| match axis {
        "x" => Some(0),
        "y" => Some(1),
        "z" => Some(2),
        _ => None,
    };
    if let Some((of, a)) = name.split_once('.') {
        let a = axis(a)?;
        return Some(match of {
            "%tid" => Value::Thread(a),
            "%ctaid" => Value::Block(a),
            "%ntid" => Value::BlockSize(a),
            "%nctaid" => Value::GridSize(a),
            _ => return None,
        });
    }
    Some(match name {
        "%laneid" => Value::Lane,
        "%warpid" => Value::Warp,
        "%nwarpid" => Value::Warps,
        "%lanemask_eq" => Value::LaneMaskEq,
        "%lanemask_lt" => Value::LaneMaskLt,
        "%lanemask_le" => Value::LaneMaskLe,
        "%lanemask_gt" => Value::LaneMaskGt,
        "%lanemask_ge" => Value::LaneMaskGe,
        "%smid" | "%gridid" => Value::Bits(0),
        "%nsmid" => Value::Bits(1),
        "WARP_SZ" => Value::Bits(32),
        _ => return None,
    })
}

impl<'a> Names<'a> {
    pub fn enter(&mut self) {
        self.scopes.push(HashMap::new());
    }

    pub fn leave(&mut self) {
        self.scopes.pop();
    }

    pub fn fresh(&mut self, width: Width, count: u32) -> Row {
        let next = match width {
            Width::Word => &mut self.words,
            Width::Double => &mut self.doubles,
            Width::Predicate => &mut self.predicates,
        };
        let first = *next;
        *next += count;
        first
    }

    /// Declares `name`, or `name0` to `name(count-1)` where a count is given.
    pub fn declare(&mut self, name: &'a str, ty: Type, count: Option<u32>) {
        let width = width(ty);
        let first = self.fresh(width, count.unwrap_or(1));
        if let Some(scope) = self.scopes.last_mut() {
            scope.insert(name, (width, first, count.unwrap_or(0)));
        }
    }

    fn register(&self, name: &str) -> Option<Register> {
        let make = |width, row| match width {
            Width::Word => Register::Word(row),
            Width::Double => Register::Double(row),
            Width::Predicate => Register::Predicate(row),
        };
        let prefix = name.trim_end_matches(|c: char| c.is_ascii_digit());
        let number = name[prefix.len()..].parse::<u32>().ok();
        for scope in self.scopes.iter().rev() {
            if let Some(&(width, row, 0)) = scope.get(name) {
                return Some(make(width, row));
            }
            if let (Some(number), Some(&(width, first, count))) = (number, scope.get(prefix))
                && number < count
            {
                return Some(make(width, first + number));
            }
        }
        None
    }

    fn constant(&mut self, width: Width, value: Value) -> Row {
        if let Some(row) = self.constants.get(&(width, value)) {
            return *row;
        }
        let row = self.fresh(width, 1);
        self.constants.insert((width, value), row);
        self.list.push((
            match width {
                Width::Word => Register::Word(row),
                Width::Double => Register::Double(row),
                Width::Predicate => Register::Predicate(row),
            },
            value,
        ));
        row
    }

    pub fn bits(&mut self, double: bool, value: u64) -> Row {
        if double {
            self.constant(Width::Double, Value::Bits(value))
        } else {
            self.constant(Width::Word, Value::Bits(value & 0xffff_ffff))
        }
    }

    pub fn always(&mut self) -> Row {
        self.constant(Width::Predicate, Value::Bits(1))
    }

    fn symbol(&mut self, name: &str) -> Option<Value> {
        Some(match *self.symbols.get(name)? {
            Symbol::Shared(o) | Symbol::Local(o) | Symbol::Param(o) => Value::Bits(o),
            Symbol::Dynamic => Value::DynamicShared,
            Symbol::Global(o) => {
                self.uses_globals = true;
                Value::GlobalAddress(o)
            }
        })
    }

    /// The register an operand names, or one that holds its value; constants take the type's width.
    pub fn any(&mut self, operand: &Operand<'_>, ty: Type) -> Result<Register, String> {
        let double = ty.double();
        let make = |row| if double { Register::Double(row) } else { Register::Word(row) };
        match operand {
            Operand::Name(name) => {
                if let Some(register) = self.register(name) {
                    return Ok(register);
                }
                if let Some(value) = special(name).or_else(|| self.symbol(name)) {
                    return Ok(make(self.constant(if double { Width::Double } else { Width::Word }, value)));
                }
                Err(format!("the name {name}"))
            }
            Operand::Number(value, 8) if ty == Type::F32 => {
                Ok(make(self.bits(false, u64::from((f64::from_bits(*value) as f32).to_bits()))))
            }
            Operand::Number(value, 4) if ty == Type::F64 => {
                Ok(make(self.bits(true, f64::from(f32::from_bits(*value as u32)).to_bits())))
            }
            Operand::Number(value, _) if ty == Type::Pred => {
                let row = self.constant(Width::Predicate, Value::Bits(u64::from(*value != 0)));
                Ok(Register::Predicate(row))
            }
            Operand::Number(value, _) => {
                let value = if ty.bytes() >= 8 { *value } else { *value & ((1 << (8 * ty.bytes())) - 1) };
                Ok(make(self.bits(double, value)))
            }
            other => Err(format!("the operand {other:?}")),
        }
    }

    /// A source of that type.
    pub fn source(&mut self, operand: &Operand<'_>, ty: Type) -> Result<Row, String> {
        match (self.any(operand, ty)?, ty.double()) {
            (Register::Word(row), false) | (Register::Double(row), true) => Ok(row),
            (Register::Double(_), false) | (Register::Word(_), true) | (Register::Predicate(_), _) => {
                Err(format!("the width of {operand:?}"))
            }
        }
    }

    pub fn predicate(&mut self, operand: &Operand<'_>) -> Result<(Row, bool), String> {
        let (name, negate) = match operand {
            Operand::Not(name) => (*name, true),
            Operand::Name(name) => (*name, false),
            Operand::Number(..) => match self.any(operand, Type::Pred)? {
                Register::Predicate(row) => return Ok((row, false)),
                _ => return Err("a predicate".to_owned()),
            },
            other => return Err(format!("the predicate {other:?}")),
        };
        if name == "_" {
            return Ok((NONE, negate));
        }
        match self.register(name) {
            Some(Register::Predicate(row)) => Ok((row, negate)),
            _ => Err(format!("the predicate {name}")),
        }
    }

    /// A destination; `_` discards.
    pub fn destination(&mut self, operand: &Operand<'_>, ty: Type) -> Result<Row, String> {
        if matches!(operand, Operand::Name("_")) {
            return Ok(NONE);
        }
        match (operand, self.any(operand, ty)?) {
            (Operand::Name(_), Register::Word(row)) if !ty.double() => Ok(row),
            (Operand::Name(_), Register::Double(row)) if ty.double() => Ok(row),
            _ => Err(format!("the destination {operand:?}")),
        }
    }

    pub fn address(&mut self, operand: &Operand<'_>) -> Result<Address, String> {
        let (base, offset) = match operand {
            Operand::At(base, offset) => (*base, *offset),
            Operand::Name(name) => (Some(*name), 0),
            other => return Err(format!("the address {other:?}")),
        };
        let Some(name) = base else { return Ok(Address { base: NONE, double: false, offset }) };
        match self.register(name) {
            Some(Register::Word(row)) => return Ok(Address { base: row, double: false, offset }),
            Some(Register::Double(row)) => return Ok(Address { base: row, double: true, offset }),
            Some(Register::Predicate(_)) => return Err(format!("the address {name}")),
            None => {}
        }
        match self.symbol(name) {
            Some(Value::Bits(at)) => Ok(Address { base: NONE, double: false, offset: offset + at as i64 }),
            Some(value) => {
                let row = self.constant(Width::Double, value);
                Ok(Address { base: row, double: true, offset })
            }
            None => Err(format!("the name {name}")),
        }
    }
}

/// A number as written: integers of any base and sign, `0f` and `0d` floats, decimal floats.
pub fn number(text: &str) -> Option<(u64, u8)> {
    if let Some(hex) = text.strip_prefix("0f").or_else(|| text.strip_prefix("0F")) {
        return u64::from_str_radix(hex, 16).ok().map(|v| (v, 4));
    }
    if let Some(hex) = text.strip_prefix("0d").or_else(|| text.strip_prefix("0D")) {
        return u64::from_str_radix(hex, 16).ok().map(|v| (v, 8));
    }
    let digits = text.trim_end_matches('U');
    if let Some(hex) = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        return u64::from_str_radix(hex, 16).ok().map(|v| (v, 0));
    }
    if !text.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    match digits.parse::<u64>() {
        Ok(v) => Some((v, 0)),
        Err(_) => text.parse::<f64>().ok().map(|v| (v.to_bits(), 8)),
    }
}

/// Splits the tokens of a statement, after its opcode, into operands.
pub fn operands<'a>(tokens: &[Token<'a>]) -> Result<Vec<Operand<'a>>, String> {
    let mut at = 0;
    let mut out = Vec::with_capacity(4);
    while at < tokens.len() {
        out.push(operand(tokens, &mut at)?);
        match tokens.get(at).map(|t| t.text) {
            Some(",") => at += 1,
            None => {}
            Some(other) => return Err(format!("`{other}` after an operand")),
        }
    }
    Ok(out)
}

fn operand<'a>(tokens: &[Token<'a>], at: &mut usize) -> Result<Operand<'a>, String> {
    let next = |at: &mut usize| {
        let token = tokens.get(*at).map(|t| t.text).ok_or("a statement that ends early");
        *at += 1;
        token
    };
    let first = next(at)?;
    match first {
        "{" => {
            let mut items = Vec::with_capacity(4);
            loop {
                items.push(operand(tokens, at)?);
                match next(at)? {
                    "," => {}
                    "}" => return Ok(Operand::Vector(items)),
                    other => return Err(format!("`{other}` in a vector")),
                }
            }
        }
        "[" => {
            let (mut base, mut offset, mut sign) = (None, 0i64, 1i64);
            loop {
                match next(at)? {
                    "]" => return Ok(Operand::At(base, offset)),
                    "+" => sign = 1,
                    "-" => sign = -sign,
                    text => match number(text) {
                        Some((value, _)) => {
                            offset += sign * value as i64;
                            sign = 1;
                        }
                        None if base.is_none() => base = Some(text),
                        None => return Err(format!("`{text}` in an address")),
                    },
                }
            }
        }
        "!" => Ok(Operand::Not(next(at)?)),
        "-" => {
            let text = next(at)?;
            match number(text) {
                Some((value, 0)) => Ok(Operand::Number((value as i64).wrapping_neg() as u64, 0)),
                Some((value, _)) => Ok(Operand::Number((-f64::from_bits(value)).to_bits(), 8)),
                None => Err(format!("`-{text}`")),
            }
        }
        text => {
            if let Some((value, width)) = number(text) {
                return Ok(Operand::Number(value, width));
            }
            if tokens.get(*at).is_some_and(|t| t.text == "|") {
                *at += 1;
                return Ok(Operand::Pair(text, next(at)?));
            }
            Ok(Operand::Name(text))
        }
    }
}
