//! PTX interpreter for tests: runs what NVRTC emitted, one warp instruction at a time over 32 lanes,
//! with exact bounds, initialisation and race checks on every global/shared access.
use std::collections::HashMap;

type V = [u64; 32];
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Ty {
    P,
    U(u8),
    S(u8),
    B(u8),
    F(u8),
}
impl Ty {
    fn parse(s: &str) -> Option<Ty> {
        Some(match s {
            "pred" => Ty::P,
            _ if s.len() < 2 || !s.is_ascii() => return None,
            _ => {
                let n: u32 = s[1..].parse().ok()?;
                let b = (n / 8) as u8;
                match (&s[..1], n) {
                    ("u", 8 | 16 | 32 | 64) => Ty::U(b),
                    ("s", 8 | 16 | 32 | 64) => Ty::S(b),
                    ("b", 8 | 16 | 32 | 64) => Ty::B(b),
                    ("f", 16 | 32 | 64) => Ty::F(b),
                    _ => return None,
                }
            }
        })
    }
    fn size(self) -> usize {
        match self {
            Ty::P => 1,
            Ty::U(n) | Ty::S(n) | Ty::B(n) | Ty::F(n) => n as usize,
        }
    }
    fn mask(self, v: u64) -> u64 {
        match self.size() {
            8 => v,
            n => v & ((1u64 << (8 * n)) - 1),
        }
    }
    fn sx(self, v: u64) -> i64 {
        let s = 64 - 8 * self.size() as u32;
        if let Ty::S(_) = self {
            ((v << s) as i64) >> s
        } else {
            self.mask(v) as i64
        }
    }
}
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arg {
    R(u32),
    I(u64),
    Sp(u8),
} // register, immediate, special register
#[derive(Clone, Copy, PartialEq, Debug)]
enum Cmp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    Ltu,
    Leu,
    Gtu,
    Geu,
    Equ,
    Neu,
}
#[derive(Clone, Copy, PartialEq, Debug)]
enum Space {
    Param,
    Shared,
    Global,
}
#[derive(Clone, Copy, PartialEq, Debug)]
enum Bin {
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
}
#[derive(Clone, Debug)]
enum Op {
    Bin(Bin, Ty),
    MulWide(Ty),
    Mad(Ty),
    MadWide(Ty),
    Fma(Ty),
    Not(Ty),
    Neg(Ty),
    Abs(Ty),
    Setp(Cmp, Ty),
    Selp,
    Mov,
    Pack(u8),
    Unpack(u8),
    Cvt(Ty, Ty, bool),
    CvtF16x2,
    Ld(Space, Ty, u8),
    St(Space, Ty, u8),
    Bra(usize),
    Bar,
    Ret,
    Shfl(u8),
    LdMatrix(u8, bool),
    Mma16816,
    CpAsync(u8),
    CpCommit,
    CpWait,
    Unary(u8),
    Bfi,
    Nop,
    Popc, Clz, Brev, Bfe(bool), Vote(u8), ActiveMask, Lop3, Prmt, Shf(bool), Tanh, Sin, Cos, Half2(u8, bool), Cmp16(Cmp),
}
#[derive(Clone, Debug)]
struct Ins {
    op: Op,
    guard: Option<(u32, bool)>,
    d: Vec<u32>,
    s: Vec<Arg>,
    off: i64,
    base: Arg,
    loc: u32,
}
pub struct Kernel {
    pub name: String,
    code: Vec<Ins>,
    nregs: usize,
    params: Vec<(usize, usize)>,
    shared: Vec<(usize, usize, String)>,
    smem: usize,
    locs: Vec<(u32, u32, u32, u32)>,
    files: HashMap<u32, String>,
    dynbase: usize,
}

impl Kernel {
    pub fn params(&self) -> &[(usize, usize)] {
        &self.params
    }
    pub fn smem(&self) -> usize {
        self.shared.iter().map(|s| s.1).sum()
    }
    pub fn nregs(&self) -> usize {
        self.nregs
    }
}
pub const SH_RED: usize = 64; // red zone between shared variables

fn special(s: &str) -> Option<u8> {
    [
        "%tid.x",
        "%tid.y",
        "%tid.z",
        "%ctaid.x",
        "%ctaid.y",
        "%ctaid.z",
        "%ntid.x",
        "%ntid.y",
        "%ntid.z",
        "%nctaid.x",
        "%nctaid.y",
        "%nctaid.z",
        "%laneid",
    ]
    .iter()
    .position(|x| *x == s)
    .map(|x| x as u8)
}

pub fn parse(src: &str) -> Result<Vec<Kernel>, String> {
    let mut files = HashMap::new();
    let mut out = vec![];
    // strip comments
    let mut text = String::new();
    for l in src.lines() {
        text.push_str(l.split("//").next().unwrap());
        text.push('\n');
    }
    for l in text.lines() {
        if let Some(r) = l.trim().strip_prefix(".file") {
            let mut it = r.trim().splitn(2, char::is_whitespace);
            if let (Some(i), Some(n)) = (it.next(), it.next()) {
                files.insert(
                    i.parse().unwrap_or(0),
                    n.split('"').nth(1).unwrap_or("").to_string(),
                );
            }
        }
    }
    let mut rest = &text[..];
    while let Some(p) = rest.find(".entry") {
        rest = &rest[p + 6..];
        let open = rest.find('(').ok_or("no params")?;
        let name = rest[..open].trim().to_string();
        let close = rest.find(')').ok_or("no )")?;
        let (mut params, mut pn, mut off) = (vec![], HashMap::new(), 0usize);
        for p in rest[open + 1..close].split(',') {
            let t: Vec<&str> = p.split_whitespace().collect();
            if t.is_empty() {
                continue;
            }
            let mut align = 0;
            let (mut ty, mut i) = (None, 1);
            while i < t.len() - 1 {
                if t[i] == ".align" {
                    align = t[i + 1].parse().unwrap();
                    i += 2;
                } else {
                    ty = Ty::parse(&t[i][1..]);
                    i += 1;
                }
            }
            let ty = ty.ok_or_else(|| format!("param {p}"))?;
            let (nm, n) = match t[t.len() - 1].split_once('[') {
                Some((a, b)) => (a, b.trim_end_matches(']').parse::<usize>().unwrap()),
                None => (t[t.len() - 1], 1),
            };
            let sz = n * ty.size();
            let al = align.max(ty.size());
            off = off.div_ceil(al) * al;
            pn.insert(nm.to_string(), off);
            params.push((off, sz));
            off += sz;
        }
        let b0 = rest.find('{').ok_or("no body")?;
        let mut depth = 0;
        let mut end = b0;
        for (i, c) in rest[b0..].char_indices() {
            if c == '{' {
                depth += 1
            } else if c == '}' {
                depth -= 1;
                if depth == 0 {
                    end = b0 + i;
                    break;
                }
            }
        }
        let body = &rest[b0 + 1..end];
        let mut regs: HashMap<String, u32> = HashMap::new();
        let (mut shared, mut sbase, mut smem) = (vec![], HashMap::new(), SH_RED);
        let (mut labels, mut fix, mut code) = (HashMap::new(), vec![], Vec::<Ins>::new());
        let (mut locs, mut loc) = (vec![(0u32, 0u32, 0u32, 0u32)], 0u32);
        // statements: split at ';' but labels end with ':' and .loc ends with newline
        let mut stm: Vec<String> = vec![];
        let mut cur = String::new();
        for l in body.lines() {
            let t = l.trim();
            if t.starts_with(".loc") {
                stm.push(t.to_string());
                continue;
            }
            if t.starts_with(".pragma") {
                continue;
            }
            if t.ends_with(':') && !t.contains(char::is_whitespace) {
                stm.push(t.to_string());
                continue;
            }
            for c in t.chars() {
                if c == ';' {
                    stm.push(std::mem::take(&mut cur));
                } else {
                    cur.push(c)
                }
            }
            cur.push(' ');
        }
        for s in &stm {
            let mut s = s.trim();
            loop {
                // inline-asm scope braces around a statement
                if let Some(r) = s.strip_prefix('{') {
                    s = r.trim()
                } else if let Some(r) = s.strip_prefix('}') {
                    s = r.trim()
                } else {
                    break;
                }
            }
            if s.is_empty() {
                continue;
            }
            if let Some(r) = s.strip_prefix(".loc") {
                let nums = |x: &str| -> Vec<u32> {
                    x.split([' ', ',', '\t'])
                        .filter_map(|x| x.parse().ok())
                        .take(2)
                        .collect()
                };
                let v = nums(r);
                let at = r.split_once("inlined_at").map(|x| nums(x.1));
                if v.len() == 2 {
                    let o = at.filter(|a| a.len() == 2).map_or((0, 0), |a| (a[0], a[1]));
                    locs.push((v[0], v[1], o.0, o.1));
                    loc = locs.len() as u32 - 1;
                }
                continue;
            }
            if let Some(l) = s.strip_suffix(':') {
                labels.insert(l.to_string(), code.len());
                continue;
            }
            if s.starts_with(".reg") {
                continue;
            }
            if let Some(r) = s.strip_prefix(".shared") {
                let t: Vec<&str> = r.split_whitespace().collect();
                let al: usize = t
                    .iter()
                    .position(|x| *x == ".align")
                    .map_or(16, |i| t[i + 1].parse().unwrap());
                let (nm, n) = t[t.len() - 1].split_once('[').unwrap();
                let n: usize = n.trim_end_matches(']').parse().unwrap();
                let ty = t
                    .iter()
                    .filter_map(|x| Ty::parse(x.get(1..)?))
                    .next()
                    .unwrap_or(Ty::B(1));
                smem = smem.div_ceil(al) * al;
                sbase.insert(nm.to_string(), smem);
                shared.push((smem, n * ty.size(), nm.to_string()));
                smem += n * ty.size() + SH_RED;
                continue;
            }
            let mut guard = None;
            let mut reg = |n: &str| -> u32 {
                let k = regs.len() as u32;
                *regs.entry(n.to_string()).or_insert(k)
            };
            if let Some(r) = s.strip_prefix('@') {
                let (g, r) = r.split_once(char::is_whitespace).unwrap();
                let neg = g.starts_with('!');
                guard = Some((reg(g.trim_start_matches('!')), neg));
                s = r.trim();
            }
            let (opc, a) = s.split_once(char::is_whitespace).unwrap_or((s, ""));
            let part: Vec<&str> = opc.split('.').collect();
            // operands: split at commas outside braces/brackets
            let (mut ops, mut d, mut c) = (vec![], 0, String::new());
            for ch in a.chars() {
                match ch {
                    '{' | '[' => {
                        d += 1;
                        c.push(ch)
                    }
                    '}' | ']' => {
                        d -= 1;
                        c.push(ch)
                    }
                    ',' if d == 0 => ops.push(std::mem::take(&mut c)),
                    _ => c.push(ch),
                }
            }
            if !c.trim().is_empty() {
                ops.push(c)
            }
            let ops: Vec<String> = ops.iter().map(|x| x.trim().to_string()).collect();
            let tys: Vec<Ty> = part[1..]
                .iter()
                .filter_map(|x| if x.len() >= 2 { Ty::parse(x) } else { None })
                .collect();
            let ty = *tys.last().unwrap_or(&Ty::B(4));
            let mut arg = |x: &str, reg: &mut dyn FnMut(&str) -> u32| -> Result<Arg, String> {
                if let Some(i) = special(x) {
                    return Ok(Arg::Sp(i));
                }
                if x.starts_with('%') {
                    return Ok(Arg::R(reg(x)));
                }
                if let Some(o) = sbase.get(x) {
                    return Ok(Arg::I(*o as u64));
                }
                if x.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') && x != "WARP_SZ" {
                    return Ok(Arg::R(reg(x)));
                }
                if let Some(h) = x.strip_prefix("0f") {
                    return u64::from_str_radix(h, 16).map(Arg::I).map_err(|e| e.to_string());
                }
                if let Some(h) = x.strip_prefix("0d") {
                    return u64::from_str_radix(h, 16).map(Arg::I).map_err(|e| e.to_string());
                }
                if let Some(h) = x.strip_prefix("0x") {
                    return u64::from_str_radix(h, 16).map(Arg::I).map_err(|e| e.to_string());
                }
                if x == "WARP_SZ" {
                    return Ok(Arg::I(32));
                }
                x.parse::<i64>()
                    .map(|v| Arg::I(v as u64))
                    .map_err(|_| format!("operand {x} in: {s}"))
            };
            let list = |x: &str| -> Vec<String> {
                x.trim_matches(['{', '}'])
                    .split(',')
                    .map(|y| y.trim().to_string())
                    .collect()
            };
            let (mut dd, mut ss, mut base, mut off) = (vec![], vec![], Arg::I(0), 0i64);
            let mut addr = |x: &str, reg: &mut dyn FnMut(&str) -> u32| -> Result<(Arg, i64), String> {
                let x = x.trim_matches(['[', ']']).trim();
                let (b, o) = match x.rfind(['+', '-']) {
                    Some(i) if i > 0 => (
                        x[..i].trim(),
                        x[i..]
                            .trim_start_matches('+')
                            .parse::<i64>()
                            .map_err(|e| e.to_string())?,
                    ),
                    _ => (x, 0),
                };
                if let Some(p) = pn.get(b) {
                    return Ok((Arg::I(*p as u64), o));
                }
                Ok((arg(b, reg)?, o))
            };
            macro_rules! ds {
                () => {{
                    if ops.is_empty() {
                        return Err(s.into());
                    }
                    for x in list(&ops[0]) {
                        dd.push(reg(&x));
                    }
                    for o in &ops[1..] {
                        for x in list(o) {
                            ss.push(arg(&x, &mut reg)?);
                        }
                    }
                }};
            }
            let has = |x: &str| part.contains(&x);
            let op = match part[0] {
                "add" => {
                    ds!();
                    Op::Bin(Bin::Add, ty)
                }
                "sub" => {
                    ds!();
                    Op::Bin(Bin::Sub, ty)
                }
                "mul" => {
                    ds!();
                    if has("wide") {
                        Op::MulWide(ty)
                    } else if has("hi") {
                        Op::Bin(Bin::MulHi, ty)
                    } else {
                        Op::Bin(Bin::Mul, ty)
                    }
                }
                "mad" => {
                    ds!();
                    if has("wide") {
                        Op::MadWide(ty)
                    } else {
                        Op::Mad(ty)
                    }
                }
                "fma" => {
                    ds!();
                    Op::Fma(ty)
                }
                "div" => {
                    ds!();
                    Op::Bin(Bin::Div, ty)
                }
                "rem" => {
                    ds!();
                    Op::Bin(Bin::Rem, ty)
                }
                "min" => {
                    ds!();
                    Op::Bin(Bin::Min, ty)
                }
                "max" => {
                    ds!();
                    Op::Bin(Bin::Max, ty)
                }
                "and" => {
                    ds!();
                    Op::Bin(Bin::And, ty)
                }
                "or" => {
                    ds!();
                    Op::Bin(Bin::Or, ty)
                }
                "xor" => {
                    ds!();
                    Op::Bin(Bin::Xor, ty)
                }
                "shl" => {
                    ds!();
                    Op::Bin(Bin::Shl, ty)
                }
                "shr" => {
                    ds!();
                    Op::Bin(Bin::Shr, ty)
                }
                "not" => {
                    ds!();
                    Op::Not(if part[1] == "pred" { Ty::P } else { ty })
                }
                "neg" => {
                    ds!();
                    Op::Neg(ty)
                }
                "abs" => {
                    ds!();
                    Op::Abs(ty)
                }
                "setp" => {
                    ds!();
                    use Cmp::*;
                    Op::Setp(
                        match part[1] {
                            "eq" => Eq,
                            "ne" => Ne,
                            "lt" => Lt,
                            "le" => Le,
                            "gt" => Gt,
                            "ge" => Ge,
                            "lo" => Lt,
                            "ls" => Le,
                            "hi" => Gt,
                            "hs" => Ge,
                            "ltu" => Ltu,
                            "leu" => Leu,
                            "gtu" => Gtu,
                            "geu" => Geu,
                            "equ" => Equ,
                            "neu" => Neu,
                            x => return Err(format!("setp.{x}")),
                        },
                        ty,
                    )
                }
                "selp" => {
                    ds!();
                    Op::Selp
                }
                "mov" => {
                    ds!();
                    if dd.len() > 1 {
                        Op::Unpack((ty.size() / dd.len()) as u8)
                    } else if ss.len() > 1 {
                        Op::Pack((ty.size() / ss.len()) as u8)
                    } else {
                        Op::Mov
                    }
                }
                "cvt" if has("f16x2") => {
                    ds!();
                    Op::CvtF16x2
                }
                "cvt" => {
                    ds!();
                    if tys.len() < 2 {
                        return Err(format!("unsupported instruction: {s}"));
                    }
                    Op::Cvt(tys[0], tys[1], has("rzi") || has("rz"))
                }
                "cvta" => {
                    ds!();
                    Op::Mov
                }
                "ld" | "st" => {
                    let sp = if has("param") {
                        Space::Param
                    } else if has("shared") || has("shared::cta") {
                        Space::Shared
                    } else if has("global") {
                        Space::Global
                    } else {
                        return Err(format!("generic {s}"));
                    };
                    let n = if has("v2") {
                        2
                    } else if has("v4") {
                        4
                    } else {
                        1
                    };
                    let (m, v) = if part[0] == "ld" { (1, 0) } else { (0, 1) };
                    (base, off) = addr(&ops[m], &mut reg)?;
                    if part[0] == "ld" {
                        for x in list(&ops[v]) {
                            dd.push(reg(&x))
                        }
                        Op::Ld(sp, ty, n)
                    } else {
                        for x in list(&ops[v]) {
                            ss.push(arg(&x, &mut reg)?)
                        }
                        Op::St(sp, ty, n)
                    }
                }
                "bra" => {
                    fix.push((code.len(), ops[0].clone()));
                    Op::Bra(0)
                }
                "bar" if has("warp") => Op::Nop,
                "membar" | "fence" => Op::Nop,
                "bar" | "barrier" => Op::Bar,
                "ret" | "exit" => Op::Ret,
                "shfl" => {
                    let (a, p) = ops[0].split_once('|').unwrap_or((&ops[0], ""));
                    dd.push(reg(a));
                    if !p.is_empty() {
                        dd.push(reg(p))
                    }
                    for o in &ops[1..] {
                        ss.push(arg(o, &mut reg)?)
                    }
                    Op::Shfl(
                        ["bfly", "idx", "down", "up"]
                            .iter()
                            .position(|x| has(x))
                            .ok_or("shfl")? as u8,
                    )
                }
                "ldmatrix" => {
                    for x in list(&ops[0]) {
                        dd.push(reg(&x))
                    }
                    (base, off) = addr(&ops[1], &mut reg)?;
                    Op::LdMatrix(
                        if has("x4") {
                            4
                        } else if has("x2") {
                            2
                        } else {
                            1
                        },
                        has("trans"),
                    )
                }
                "mma" if has("m16n8k16") && part.ends_with(&["f32", "f16", "f16", "f32"]) => {
                    for x in list(&ops[0]) {
                        dd.push(reg(&x))
                    }
                    for o in &ops[1..] {
                        for x in list(o) {
                            ss.push(arg(&x, &mut reg)?)
                        }
                    }
                    Op::Mma16816
                }
                "cp" if has("commit_group") => Op::CpCommit,
                "cp" if has("wait_group") => {
                    ss.push(arg(&ops[0], &mut reg)?);
                    Op::CpWait
                }
                "cp" if has("async") => {
                    let (a, _) = addr(&ops[0], &mut reg)?;
                    let (b, o) = addr(&ops[1], &mut reg)?;
                    let n = arg(&ops[2], &mut reg)?;
                    base = b;
                    off = o;
                    ss.push(a);
                    ss.push(n);
                    ss.push(if ops.len() > 3 { arg(&ops[3], &mut reg)? } else { n });
                    Op::CpAsync(0)
                }
                "ex2" => {
                    ds!();
                    Op::Unary(0)
                }
                "rcp" => {
                    ds!();
                    Op::Unary(1)
                }
                "sqrt" => {
                    ds!();
                    Op::Unary(2)
                }
                "rsqrt" => {
                    ds!();
                    Op::Unary(3)
                }
                "lg2" => {
                    ds!();
                    Op::Unary(4)
                }
                "bfi" => { ds!(); Op::Bfi }
                "popc" => { ds!(); Op::Popc }
                "clz" => { ds!(); Op::Clz }
                "brev" => { ds!(); Op::Brev }
                "bfe" => { ds!(); Op::Bfe(part[1].starts_with('s')) }
                "activemask" => { ds!(); Op::ActiveMask }
                "lop3" => { ds!(); Op::Lop3 }
                "prmt" => { ds!(); Op::Prmt }
                "shf" => { ds!(); Op::Shf(has("l")) }
                "tanh" => { ds!(); Op::Tanh }
                "sin" => { ds!(); Op::Sin }
                "cos" => { ds!(); Op::Cos }
                "vote" => { ds!(); Op::Vote(if has("ballot") {0} else if has("all") {1} else {2}) }
                _ => return Err(format!("unsupported instruction: {s}")),
            };
            code.push(Ins {
                op,
                guard,
                d: dd,
                s: ss,
                off,
                base,
                loc,
            });
        }
        for (i, l) in fix {
            let t = *labels.get(&l).ok_or(format!("label {l}"))?;
            code[i].op = Op::Bra(t)
        }
        out.push(Kernel {
            name,
            code,
            nregs: regs.len(),
            params,
            shared,
            smem,
            locs,
            files: files.clone(),
            dynbase: smem,
        });
        rest = &rest[end..];
    }
    Ok(out)
}

#[derive(Clone, Copy, Default)]
struct Cell {
    w_when: u32,
    r_when: u32,
    w_who: u16,
    r_who: u16,
    w_blk: u32,
    r_blk: u32,
    init: bool,
    multi: bool,
    pending: bool,
}
pub struct Gpu {
    mem: Vec<u8>,
    sh: Vec<Cell>,
    live: Vec<(usize, usize)>,
    now: u32,
    launch_first: u32,
    pub errors: Vec<String>,
    pub nerr: u64,
    pub instrs: u64,
    pub check: bool,
}
pub const BASE: u64 = 0x7f00_0000_0000;
struct Warp {
    r: Vec<V>,
    pc: [u32; 32],
    live: u32,
    bar: bool,
    q: Vec<(u32, u8, usize, u64, usize, usize)>,
    grp: u32,
} // q: group,lane,dst,src,n,srcn

impl Default for Gpu {
    fn default() -> Self {
        Gpu {
            mem: vec![],
            sh: vec![],
            live: vec![],
            now: 0,
            launch_first: 0,
            errors: vec![],
            nerr: 0,
            instrs: 0,
            check: true,
        }
    }
}
impl Gpu {
    pub fn alloc(&mut self, n: usize) -> u64 {
        let o = self.mem.len() + 256;
        self.mem.resize((o + n + 256).div_ceil(256) * 256, 0xCD);
        if self.check {
            self.sh.resize(self.mem.len(), Cell::default())
        }
        self.live.push((o, n));
        BASE + o as u64
    }
    pub fn free(&mut self, p: u64) -> bool {
        let o = p.wrapping_sub(BASE) as usize;
        match self.live.iter().position(|l| l.0 == o) {
            Some(i) => {
                self.live.remove(i);
                true
            }
            None => false,
        }
    }
    pub fn in_bounds(&self, p: u64, n: usize) -> bool {
        let o = p.wrapping_sub(BASE) as usize;
        let i = self.live.partition_point(|l| l.0 <= o);
        i > 0 && o + n <= self.live[i - 1].0 + self.live[i - 1].1
    }
    pub fn write(&mut self, p: u64, d: &[u8]) {
        let o = (p - BASE) as usize;
        self.mem[o..o + d.len()].copy_from_slice(d);
        if self.check {
            for c in &mut self.sh[o..o + d.len()] {
                c.init = true
            }
        }
    }
    pub fn read(&self, p: u64, n: usize) -> &[u8] {
        let o = (p - BASE) as usize;
        &self.mem[o..o + n]
    }

    pub fn launch(
        &mut self,
        k: &Kernel,
        grid: [u32; 3],
        block: [u32; 3],
        dynsmem: usize,
        args: &[Vec<u8>],
        reverse: bool,
    ) -> Result<(), String> {
        let psz = k.params.iter().map(|p| p.0 + p.1).max().unwrap_or(0);
        let mut par = vec![0u8; psz];
        if args.len() != k.params.len() {
            return Err(format!(
                "{} wants {} arguments, got {}",
                k.name,
                k.params.len(),
                args.len()
            ));
        }
        for (a, p) in args.iter().zip(&k.params) {
            if a.len() != p.1 {
                return Err(format!("argument size {} != {}", a.len(), p.1));
            }
            par[p.0..p.0 + p.1].copy_from_slice(a)
        }
        let nt = (block[0] * block[1] * block[2]) as usize;
        let nw = nt.div_ceil(32);
        self.now += 1;
        self.launch_first = self.now;
        let mut valid = vec![false; k.smem + dynsmem + SH_RED];
        for (o, n, _) in &k.shared {
            valid[*o..*o + *n].fill(true)
        }
        valid[k.dynbase..k.dynbase + dynsmem].fill(true);
        let mut blk = 0;
        for bz in 0..grid[2] {
            for by in 0..grid[1] {
                for bx in 0..grid[0] {
                    blk += 1;
                    self.now += 1;
                    let mut b = Block {
                        k,
                        par: &par,
                        smem: vec![0xCD; valid.len()],
                        ssh: vec![Cell::default(); valid.len()],
                        valid: &valid,
                        bid: [bx, by, bz],
                        block,
                        grid,
                        blk,
                        interval: 0,
                        done: vec![0; nw],
                    };
                    let mut ws: Vec<Warp> = (0..nw)
                        .map(|w| Warp {
                            r: vec![[0; 32]; k.nregs],
                            pc: [0; 32],
                            live: if nt - w * 32 >= 32 {
                                !0
                            } else {
                                (1u32 << (nt - w * 32)) - 1
                            },
                            bar: false,
                            q: vec![],
                            grp: 0,
                        })
                        .collect();
                    loop {
                        let mut ran = false;
                        for i in 0..nw {
                            let w = if reverse { nw - 1 - i } else { i };
                            if ws[w].live != 0 && !ws[w].bar {
                                ran = true;
                                self.run_warp(&mut b, &mut ws[w], w)?
                            }
                        }
                        if ws.iter().all(|w| w.live == 0) {
                            break;
                        }
                        if ws.iter().all(|w| w.live == 0 || w.bar) {
                            for (i, w) in ws.iter_mut().enumerate() {
                                if w.bar {
                                    w.bar = false;
                                    b.done[i] = self.now
                                }
                            }
                            b.interval += 1;
                            self.now += 1;
                        } else if !ran {
                            return Err("deadlock".into());
                        }
                    }
                    if ws.iter().any(|w| !w.q.is_empty()) {
                        self.err(&b, 0, 0, 0, "thread exits with cp.async in flight")
                    }
                }
            }
        }
        Ok(())
    }
    #[cold]
    fn err(&mut self, b: &Block, loc: u32, w: usize, lane: usize, m: &str) {
        self.nerr += 1;
        if self.errors.len() < 20 {
            let (f, l, f2, l2) = b.k.locs[loc as usize];
            let nm = |f: u32| b.k.files.get(&f).map_or("?", |s| s.rsplit('/').next().unwrap());
            let from = if l2 != 0 {
                format!(" (inlined at {}:{l2})", nm(f2))
            } else {
                String::new()
            };
            self.errors.push(format!(
                "{m} at {}:{l}{from}, block {:?} thread {} (warp {w} lane {lane}) interval {}",
                nm(f),
                b.bid,
                w * 32 + lane,
                b.interval
            ))
        }
    }
    fn touch(
        now: u32,
        first: u32,
        done: &[u32],
        c: &mut Cell,
        who: u16,
        blk: u32,
        wr: bool,
        global: bool,
        issue: bool,
    ) -> Option<&'static str> {
        if c.pending && !issue {
            return Some(if wr {
                "write to in-flight cp.async destination"
            } else {
                "read of in-flight cp.async destination (missing wait_group)"
            });
        }
        let conf = |when: u32, w: u16, bk: u32| {
            w != 0
                && if bk == blk && when >= first {
                    w != who && (when == now || (w != u16::MAX && done[(w as usize - 1) / 32] < when))
                } else {
                    global && when >= first
                }
        };
        let mut e = None;
        if wr {
            if conf(c.w_when, c.w_who, c.w_blk) {
                e = Some("RACE write-write")
            } else if conf(c.r_when, if c.multi { u16::MAX } else { c.r_who }, c.r_blk) {
                e = Some("RACE write-after-read")
            }
            c.w_when = now;
            c.w_who = who;
            c.w_blk = blk;
            c.init = true;
        } else {
            if !c.init {
                e = Some("read of uninitialised memory")
            } else if conf(c.w_when, c.w_who, c.w_blk) {
                e = Some("RACE read-after-write")
            }
            c.multi = c.r_when == now && c.r_who != 0 && (c.multi || c.r_who != who);
            c.r_when = now;
            c.r_who = who;
            c.r_blk = blk;
        }
        e
    }
    /// bounds + race check; Some(offset) when the access may proceed
    #[inline]
    fn acc(
        &mut self,
        b: &mut Block,
        sp: Space,
        a: u64,
        n: usize,
        wr: bool,
        issue: bool,
        loc: u32,
        w: usize,
        lane: usize,
    ) -> Option<usize> {
        if a as usize & (n - 1) != 0 {
            self.err(b, loc, w, lane, &format!("misaligned {n}-byte access {a:#x}"));
            return None;
        }
        let who = (w * 32 + lane + 1) as u16;
        match sp {
            Space::Shared => {
                let o = a as usize;
                if o + n > b.valid.len() || !b.valid[o] || !b.valid[o + n - 1] {
                    let near = b.k.shared.iter().rev().find(|s| s.0 <= o).map_or("?", |s| &s.2);
                    self.err(
                        b,
                        loc,
                        w,
                        lane,
                        &format!(
                            "OUT OF BOUNDS shared {} {n} B at {o} (after {near})",
                            if wr { "write" } else { "read" }
                        ),
                    );
                    return None;
                }
                if self.check {
                    let (now, first, blk) = (self.now, self.launch_first, b.blk);
                    let mut e = None;
                    for c in &mut b.ssh[o..o + n] {
                        e = Self::touch(now, first, &b.done, c, who, blk, wr, false, issue).or(e)
                    }
                    if let Some(m) = e {
                        self.err(b, loc, w, lane, m)
                    }
                }
                Some(o)
            }
            Space::Global => {
                let o = a.wrapping_sub(BASE) as usize;
                let i = self.live.partition_point(|l| l.0 <= o);
                if i == 0 || o + n > self.live[i - 1].0 + self.live[i - 1].1 {
                    self.err(
                        b,
                        loc,
                        w,
                        lane,
                        &format!(
                            "OUT OF BOUNDS global {} {n} B at {a:#x}",
                            if wr { "write" } else { "read" }
                        ),
                    );
                    return None;
                }
                if self.check {
                    let (now, first, blk) = (self.now, self.launch_first, b.blk);
                    let mut e = None;
                    for c in &mut self.sh[o..o + n] {
                        e = Self::touch(now, first, &b.done, c, who, blk, wr, true, false).or(e)
                    }
                    if let Some(m) = e {
                        self.err(b, loc, w, lane, m)
                    }
                }
                Some(o)
            }
            Space::Param => Some(a as usize),
        }
    }
    fn run_warp(&mut self, b: &mut Block, w: &mut Warp, wi: usize) -> Result<(), String> {
        let code = &b.k.code;
        loop {
            if w.live == 0 {
                return Ok(());
            }
            // lowest pc first: reconverges at the latest where control flow joins
            let mut pc = u32::MAX;
            let mut m = 0u32;
            let mut l = w.live;
            while l != 0 {
                let i = l.trailing_zeros() as usize;
                l &= l - 1;
                if w.pc[i] < pc {
                    pc = w.pc[i];
                    m = 1 << i
                } else if w.pc[i] == pc {
                    m |= 1 << i
                }
            }
            // run straight-line code with this mask until control flow changes
            let mut other = u32::MAX;
            let mut l = w.live & !m;
            while l != 0 {
                let i = l.trailing_zeros() as usize;
                l &= l - 1;
                other = other.min(w.pc[i])
            }
            loop {
                if pc == other {
                    break;
                }
                let Some(ins) = code.get(pc as usize) else {
                    w.live &= !m;
                    break;
                };
                let mut ex = m;
                if let Some((g, neg)) = ins.guard {
                    let p = &w.r[g as usize];
                    let mut t = 0u32;
                    for i in 0..32 {
                        t |= ((p[i] != 0) as u32) << i
                    }
                    ex &= if neg { !t } else { t }
                }
                self.instrs += 1;
                match ins.op {
                    Op::Bra(t) => {
                        let stay = m & !ex;
                        if stay == 0 {
                            pc = t as u32;
                            if t as u32 <= other {
                                continue;
                            }
                            break;
                        }
                        if ex == 0 {
                            pc += 1;
                            continue;
                        }
                        for i in 0..32 {
                            if m >> i & 1 == 1 {
                                w.pc[i] = if ex >> i & 1 == 1 { t as u32 } else { pc + 1 }
                            }
                        }
                        m = 0;
                        break;
                    }
                    Op::Ret => {
                        w.live &= !ex;
                        m &= !ex;
                        pc += 1;
                        if m == 0 {
                            break;
                        }
                        continue;
                    }
                    Op::Bar => {
                        if m != w.live {
                            self.err(
                                b,
                                ins.loc,
                                wi,
                                m.trailing_zeros() as usize,
                                "DIVERGENT barrier in a warp",
                            )
                        }
                        w.bar = true;
                        pc += 1;
                        for i in 0..32 {
                            if m >> i & 1 == 1 {
                                w.pc[i] = pc
                            }
                        }
                        return Ok(());
                    }
                    _ => {
                        self.exec(b, w, wi, ins, ex, m)?;
                        pc += 1
                    }
                }
            }
            for i in 0..32 {
                if m >> i & 1 == 1 {
                    w.pc[i] = pc
                }
            }
        }
    }
    #[inline]
    fn val(b: &Block, w: &Warp, wi: usize, a: Arg) -> V {
        match a {
            Arg::R(r) => w.r[r as usize],
            Arg::I(v) => [v; 32],
            Arg::Sp(s) => {
                let mut v = [0; 32];
                for (i, x) in v.iter_mut().enumerate() {
                    let t = (wi * 32 + i) as u32;
                    let bd = b.block;
                    *x = match s {
                        0 => t % bd[0],
                        1 => t / bd[0] % bd[1],
                        2 => t / (bd[0] * bd[1]),
                        3..=5 => b.bid[s as usize - 3],
                        6..=8 => bd[s as usize - 6],
                        9..=11 => b.grid[s as usize - 9],
                        _ => i as u32,
                    } as u64
                }
                v
            }
        }
    }
    fn exec(
        &mut self,
        b: &mut Block,
        w: &mut Warp,
        wi: usize,
        ins: &Ins,
        ex: u32,
        m: u32,
    ) -> Result<(), String> {
        macro_rules! s {
            ($i:expr) => {
                Self::val(b, w, wi, ins.s[$i])
            };
        }
        macro_rules! set { ($d:expr, $i:ident, $e:expr) => {{ let d = ins.d[$d] as usize; if ex == !0 { for $i in 0..32usize { w.r[d][$i] = $e } } else { for $i in 0..32usize { if ex >> $i & 1 == 1 { w.r[d][$i] = $e } } } }} }
        let f = |v: u64| f32::from_bits(v as u32);
        match ins.op {
            Op::Bin(o, t) => {
                let (x, y) = (s!(0), s!(1));
                match t {
                    Ty::F(4) => set!(0, i, {
                        let (p, q) = (f(x[i]), f(y[i]));
                        (match o {
                            Bin::Add => p + q,
                            Bin::Sub => p - q,
                            Bin::Mul => p * q,
                            Bin::Div => p / q,
                            Bin::Min => p.min(q),
                            Bin::Max => p.max(q),
                            _ => return Err("f32 op".into()),
                        })
                        .to_bits() as u64
                    }),
                    Ty::F(_) => return Err(format!("{:?} {t:?}", o)),
                    _ => match o {
                        Bin::Add => set!(0, i, t.mask(x[i].wrapping_add(y[i]))),
                        Bin::Sub => set!(0, i, t.mask(x[i].wrapping_sub(y[i]))),
                        Bin::Mul => set!(0, i, t.mask(x[i].wrapping_mul(y[i]))),
                        Bin::And => set!(0, i, x[i] & t.mask(y[i])),
                        Bin::Or => set!(0, i, x[i] | t.mask(y[i])),
                        Bin::Xor => set!(0, i, x[i] ^ t.mask(y[i])),
                        Bin::Shl => set!(0, i, {
                            let c = y[i] as u32;
                            if c >= 8 * t.size() as u32 {
                                0
                            } else {
                                t.mask(x[i] << c)
                            }
                        }),
                        Bin::Shr => set!(0, i, {
                            let c = (y[i] as u32).min(8 * t.size() as u32 - 1);
                            let big = y[i] as u32 >= 8 * t.size() as u32;
                            if let Ty::S(_) = t {
                                t.mask((t.sx(x[i]) >> c) as u64)
                            } else if big {
                                0
                            } else {
                                t.mask(x[i]) >> c
                            }
                        }),
                        Bin::Min => set!(0, i, t.mask(t.sx(x[i]).min(t.sx(y[i])) as u64)),
                        Bin::Max => set!(0, i, t.mask(t.sx(x[i]).max(t.sx(y[i])) as u64)),
                        Bin::Div => set!(0, i, {
                            let d = t.sx(y[i]);
                            if d == 0 {
                                t.mask(!0)
                            } else {
                                t.mask(t.sx(x[i]).wrapping_div(d) as u64)
                            }
                        }),
                        Bin::Rem => set!(0, i, {
                            let d = t.sx(y[i]);
                            if d == 0 {
                                x[i]
                            } else {
                                t.mask(t.sx(x[i]).wrapping_rem(d) as u64)
                            }
                        }),
                        Bin::MulHi => set!(0, i, {
                            let p = t.sx(x[i]) as i128 * t.sx(y[i]) as i128;
                            t.mask((p >> (8 * t.size())) as u64)
                        }),
                    },
                }
            }
            Op::MulWide(t) => {
                let (x, y) = (s!(0), s!(1));
                set!(0, i, t.sx(x[i]).wrapping_mul(t.sx(y[i])) as u64)
            }
            Op::Mad(t) => {
                let (x, y, z) = (s!(0), s!(1), s!(2));
                set!(0, i, t.mask(x[i].wrapping_mul(y[i]).wrapping_add(z[i])))
            }
            Op::MadWide(t) => {
                let (x, y, z) = (s!(0), s!(1), s!(2));
                set!(
                    0,
                    i,
                    (t.sx(x[i]).wrapping_mul(t.sx(y[i])) as u64).wrapping_add(z[i])
                )
            }
            Op::Fma(_) => {
                let (x, y, z) = (s!(0), s!(1), s!(2));
                set!(0, i, f(x[i]).mul_add(f(y[i]), f(z[i])).to_bits() as u64)
            }
            Op::Not(t) => {
                let x = s!(0);
                set!(
                    0,
                    i,
                    if t == Ty::P {
                        (x[i] == 0) as u64
                    } else {
                        t.mask(!x[i])
                    }
                )
            }
            Op::Neg(t) => {
                let x = s!(0);
                set!(
                    0,
                    i,
                    if let Ty::F(4) = t {
                        x[i] ^ 0x8000_0000
                    } else {
                        t.mask(0u64.wrapping_sub(x[i]))
                    }
                )
            }
            Op::Abs(t) => {
                let x = s!(0);
                set!(
                    0,
                    i,
                    if let Ty::F(4) = t {
                        x[i] & 0x7fff_ffff
                    } else {
                        t.mask(t.sx(x[i]).unsigned_abs())
                    }
                )
            }
            Op::Setp(c, t) => {
                let (x, y) = (s!(0), s!(1));
                set!(
                    0,
                    i,
                    if let Ty::F(4) = t {
                        let (p, q) = (f(x[i]), f(y[i]));
                        let un = p.is_nan() || q.is_nan();
                        (match c {
                            Cmp::Eq => p == q,
                            Cmp::Ne => p != q && !un,
                            Cmp::Lt => p < q,
                            Cmp::Le => p <= q,
                            Cmp::Gt => p > q,
                            Cmp::Ge => p >= q,
                            Cmp::Ltu => p < q || un,
                            Cmp::Leu => p <= q || un,
                            Cmp::Gtu => p > q || un,
                            Cmp::Geu => p >= q || un,
                            Cmp::Equ => p == q || un,
                            Cmp::Neu => p != q,
                        }) as u64
                    } else if t.size() == 8 && !matches!(t, Ty::S(_)) {
                        let (p, q) = (x[i], y[i]);
                        (match c {
                            Cmp::Eq => p == q,
                            Cmp::Ne => p != q,
                            Cmp::Lt => p < q,
                            Cmp::Le => p <= q,
                            Cmp::Gt => p > q,
                            _ => p >= q,
                        }) as u64
                    } else {
                        let (p, q) = (t.sx(x[i]), t.sx(y[i]));
                        (match c {
                            Cmp::Eq => p == q,
                            Cmp::Ne => p != q,
                            Cmp::Lt => p < q,
                            Cmp::Le => p <= q,
                            Cmp::Gt => p > q,
                            _ => p >= q,
                        }) as u64
                    }
                )
            }
            Op::Selp => {
                let (x, y, p) = (s!(0), s!(1), s!(2));
                set!(0, i, if p[i] != 0 { x[i] } else { y[i] })
            }
            Op::Mov => {
                let x = s!(0);
                set!(0, i, x[i])
            }
            Op::Pack(n) => {
                let xs: Vec<V> = (0..ins.s.len()).map(|k| s!(k)).collect();
                set!(
                    0,
                    i,
                    xs.iter().enumerate().fold(0u64, |a, (k, x)| a
                        | (x[i] & ((1u64 << (8 * n)) - 1)) << (8 * n as usize * k))
                )
            }
            Op::Unpack(n) => {
                let x = s!(0);
                for k in 0..ins.d.len() {
                    set!(k, i, x[i] >> (8 * n as usize * k) & ((1u64 << (8 * n)) - 1))
                }
            }
            Op::Cvt(d, t, _rz) => {
                let x = s!(0);
                set!(
                    0,
                    i,
                    match (d, t) {
                        (Ty::F(2), Ty::F(4)) => f32_to_f16(f(x[i])) as u64,
                        (Ty::F(4), Ty::F(2)) => f16_to_f32(x[i] as u16).to_bits() as u64,
                        (Ty::F(4), Ty::F(4)) => x[i],
                        (Ty::F(4), Ty::U(_) | Ty::S(_)) => {
                            let v = t.sx(x[i]);
                            (if matches!(t, Ty::S(_)) {
                                v as f32
                            } else {
                                v as u64 as f32
                            })
                            .to_bits() as u64
                        }
                        (Ty::S(4), Ty::F(4)) => f(x[i]) as i32 as u32 as u64,
                        (Ty::U(4), Ty::F(4)) => f(x[i]) as u32 as u64,
                        (Ty::F(_), _) | (_, Ty::F(_)) => return Err(format!("cvt {d:?} {t:?}")),
                        _ => d.mask(t.sx(x[i]) as u64),
                    }
                )
            }
            Op::CvtF16x2 => {
                let (x, y) = (s!(0), s!(1));
                set!(
                    0,
                    i,
                    (f32_to_f16(f(x[i])) as u64) << 16 | f32_to_f16(f(y[i])) as u64
                )
            }
            Op::Unary(o) => {
                let x = s!(0);
                set!(0, i, {
                    let v = f(x[i]);
                    (match o {
                        0 => v.exp2(),
                        1 => 1.0 / v,
                        2 => v.sqrt(),
                        3 => 1.0 / v.sqrt(),
                        _ => v.log2(),
                    })
                    .to_bits() as u64
                })
            }
            Op::Ld(sp, t, n) => {
                let a = Self::val(b, w, wi, ins.base);
                let sz = t.size();
                for i in 0..32 {
                    if ex >> i & 1 == 1 {
                        let addr = a[i].wrapping_add(ins.off as u64);
                        let o = self.acc(b, sp, addr, sz * n as usize, false, false, ins.loc, wi, i);
                        for k in 0..n as usize {
                            let v = match (o, sp) {
                                (None, _) => 0xdead_beef,
                                (Some(o), Space::Param) => rd(b.par, o + k * sz, sz),
                                (Some(o), Space::Shared) => rd(&b.smem, o + k * sz, sz),
                                (Some(o), _) => rd(&self.mem, o + k * sz, sz),
                            };
                            w.r[ins.d[k] as usize][i] = if let Ty::S(_) = t { t.sx(v) as u64 } else { v }
                        }
                    }
                }
            }
            Op::St(sp, t, n) => {
                let a = Self::val(b, w, wi, ins.base);
                let sz = t.size();
                let vs: Vec<V> = (0..n as usize).map(|k| s!(k)).collect();
                for i in 0..32 {
                    if ex >> i & 1 == 1 {
                        if let Some(o) = self.acc(
                            b,
                            sp,
                            a[i].wrapping_add(ins.off as u64),
                            sz * n as usize,
                            true,
                            false,
                            ins.loc,
                            wi,
                            i,
                        ) {
                            for (k, v) in vs.iter().enumerate() {
                                let m = if sp == Space::Shared {
                                    &mut b.smem
                                } else {
                                    &mut self.mem
                                };
                                m[o + k * sz..o + (k + 1) * sz].copy_from_slice(&v[i].to_le_bytes()[..sz])
                            }
                        }
                    }
                }
            }
            Op::Shfl(mode) => {
                let (x, y, c, mk) = (s!(0), s!(1), s!(2), s!(3));
                let mut out = x;
                let mut pr = [0u64; 32];
                for i in 0..32usize {
                    if ex >> i & 1 == 1 {
                        if mk[i] as u32 & w.live & !ex != 0 {
                            self.err(b, ins.loc, wi, i, &format!("shfl.sync: mask {:#x} names lanes that are elsewhere (executing {ex:#x})", mk[i]));
                            break;
                        }
                        let seg = (c[i] >> 8 & 31) as usize;
                        let clamp = (c[i] & 31) as usize;
                        let maxl = (i & seg) | (clamp & !seg);
                        let minl = i & seg;
                        let v = y[i] as usize & 31;
                        let (j, ok) = match mode {
                            0 => (i ^ v, (i ^ v) <= maxl),
                            1 => (minl | (v & !seg), (minl | (v & !seg)) <= maxl),
                            2 => (i + v, i + v <= maxl),
                            _ => (i.wrapping_sub(v), i >= v && i - v >= maxl),
                        };
                        if ok {
                            if ex >> j & 1 == 0 {
                                self.err(b, ins.loc, wi, i, "shfl reads an inactive lane")
                            } else {
                                out[i] = x[j];
                                pr[i] = 1
                            }
                        }
                    }
                }
                set!(0, i, out[i]);
                if ins.d.len() > 1 {
                    set!(1, i, pr[i])
                }
            }
            Op::LdMatrix(n, tr) => {
                if m != !0 {
                    self.err(b, ins.loc, wi, 0, "ldmatrix in a divergent warp");
                    return Ok(());
                }
                let a = Self::val(b, w, wi, ins.base);
                for mt in 0..n as usize {
                    let mut rows = [[0u8; 16]; 8];
                    for (r, row) in rows.iter_mut().enumerate() {
                        let l = mt * 8 + r;
                        if let Some(o) = self.acc(
                            b,
                            Space::Shared,
                            a[l].wrapping_add(ins.off as u64),
                            16,
                            false,
                            false,
                            ins.loc,
                            wi,
                            l,
                        ) {
                            row.copy_from_slice(&b.smem[o..o + 16])
                        }
                    }
                    for t in 0..32 {
                        let (r, c) = (t / 4, t % 4 * 2);
                        let h = |r: usize, c: usize| {
                            u16::from_le_bytes([rows[r][2 * c], rows[r][2 * c + 1]]) as u64
                        };
                        w.r[ins.d[mt] as usize][t] = if tr {
                            h(c, r) | h(c + 1, r) << 16
                        } else {
                            h(r, c) | h(r, c + 1) << 16
                        }
                    }
                }
            }
            Op::Mma16816 => {
                if m != !0 {
                    self.err(b, ins.loc, wi, 0, "mma in a divergent warp");
                    return Ok(());
                }
                let (mut a, mut bb) = ([[0f32; 16]; 16], [[0f32; 8]; 16]);
                let ra: [V; 4] = [s!(0), s!(1), s!(2), s!(3)];
                let rb: [V; 2] = [s!(4), s!(5)];
                let rc: [V; 4] = [s!(6), s!(7), s!(8), s!(9)];
                for t in 0..32 {
                    let (g, c) = (t >> 2, (t & 3) * 2);
                    for e in 0..2 {
                        let h = |v: u64| f16_to_f32((v >> (16 * e)) as u16);
                        a[g][c + e] = h(ra[0][t]);
                        a[g + 8][c + e] = h(ra[1][t]);
                        a[g][c + 8 + e] = h(ra[2][t]);
                        a[g + 8][c + 8 + e] = h(ra[3][t]);
                        bb[c + e][g] = h(rb[0][t]);
                        bb[c + 8 + e][g] = h(rb[1][t]);
                    }
                }
                let mut d = [[0f32; 8]; 16];
                for r in 0..16 {
                    for k in 0..16 {
                        let x = a[r][k];
                        for n in 0..8 {
                            d[r][n] += x * bb[k][n]
                        }
                    }
                }
                for t in 0..32 {
                    let (g, c) = (t >> 2, (t & 3) * 2);
                    for e in 0..4 {
                        w.r[ins.d[e] as usize][t] =
                            (f(rc[e][t]) + d[g + (e >> 1) * 8][c + (e & 1)]).to_bits() as u64
                    }
                }
            }
            Op::CpAsync(_) => {
                let (dst, n, sn) = (s!(0), s!(1), s!(2));
                let src = Self::val(b, w, wi, ins.base);
                for i in 0..32 {
                    if ex >> i & 1 == 1 {
                        let (n, sn) = (n[i] as usize, sn[i] as usize);
                        if let Some(o) = self.acc(b, Space::Shared, dst[i], n, true, true, ins.loc, wi, i) {
                            let sa = src[i].wrapping_add(ins.off as u64);
                            let so = if sn > 0 {
                                self.acc(b, Space::Global, sa, sn, false, false, ins.loc, wi, i)
                            } else {
                                Some(0)
                            };
                            for c in &mut b.ssh[o..o + n] {
                                c.pending = true
                            }
                            w.q.push((
                                w.grp,
                                i as u8,
                                o,
                                so.unwrap_or(0) as u64,
                                n,
                                if so.is_some() { sn } else { 0 },
                            ));
                        }
                    }
                }
            }
            Op::Nop => {}
            Op::Bfi => { let (a,bb,pp,l)=(s!(0),s!(1),s!(2),s!(3)); set!(0,i,{ let p=(pp[i]&255) as u32; let l=(l[i]&255) as u32; let mut r=bb[i] as u32; for k in 0..l { if p+k<32 { r=(r & !(1<<(p+k))) | (((a[i] as u32)>>k &1)<<(p+k)); } } r as u64 }) }
            Op::Popc => { let x=s!(0); set!(0,i,x[i].count_ones() as u64) }
            Op::Clz => { let x=s!(0); set!(0,i,(x[i] as u32).leading_zeros() as u64) }
            Op::Brev => { let x=s!(0); set!(0,i,(x[i] as u32).reverse_bits() as u64) }
            Op::Bfe(sg) => { let (x,p,l)=(s!(0),s!(1),s!(2)); set!(0,i,{ let (p,l)=((p[i]&255) as u32,(l[i]&255) as u32); if l==0||p>31 {0} else { let v=((x[i] as u32)>>p) as u64 & ((1u64<<l.min(32))-1); if sg && l<32 && v>>(l-1)&1==1 { (v | !((1u64<<l)-1)) & 0xffff_ffff } else { v } } }) }
            Op::ActiveMask => { let e=ex as u64; set!(0,i,e) }
            Op::Lop3 => { let (a,bb,c,l)=(s!(0),s!(1),s!(2),s!(3)); set!(0,i,{ let (a,b,c)=(a[i] as u32,bb[i] as u32,c[i] as u32); let l=l[i] as u32; let mut r=0u32; for k in 0..8 { if l>>k&1==1 { r|= (if k&4!=0 {a} else {!a}) & (if k&2!=0 {b} else {!b}) & (if k&1!=0 {c} else {!c}); } } r as u64 }) }
            Op::Prmt => { let (a,bb,c)=(s!(0),s!(1),s!(2)); set!(0,i,{ let v=(a[i]&0xffff_ffff)|(bb[i]<<32); let mut r=0u64; for k in 0..4 { let sel=c[i]>>(4*k)&15; let mut y=v>>(8*(sel&7))&255; if sel&8!=0 { y=if y&128!=0 {255} else {0}; } r|=y<<(8*k); } r }) }
            Op::Shf(left) => { let (a,bb,c)=(s!(0),s!(1),s!(2)); set!(0,i,{ let v=(a[i]&0xffff_ffff)|(bb[i]<<32); let n=c[i]&31; if left { (v<<n>>32)&0xffff_ffff } else { (v>>n)&0xffff_ffff } }) }
            Op::Tanh => { let x=s!(0); set!(0,i,f(x[i]).tanh().to_bits() as u64) }
            Op::Sin => { let x=s!(0); set!(0,i,f(x[i]).sin().to_bits() as u64) }
            Op::Cos => { let x=s!(0); set!(0,i,f(x[i]).cos().to_bits() as u64) }
            Op::Vote(k) => { let x=s!(0); let mut m=0u32; for i in 0..32 { if ex>>i&1==1 && x[i]!=0 { m|=1<<i } } set!(0,i,match k {0=>m as u64,1=>(m==ex) as u64,_=>(m!=0) as u64}) }
            Op::Half2(..) | Op::Cmp16(_) => return Err("f16 arithmetic".into()),
            Op::CpCommit => w.grp += 1,
            Op::CpWait => {
                let keep = s!(0)[0] as u32;
                let lim = w.grp.saturating_sub(keep);
                let q = std::mem::take(&mut w.q);
                for x in q {
                    if x.0 < lim {
                        for c in &mut b.ssh[x.2..x.2 + x.4] {
                            c.pending = false
                        }
                        self.acc(
                            b,
                            Space::Shared,
                            x.2 as u64,
                            x.4,
                            true,
                            false,
                            ins.loc,
                            wi,
                            x.1 as usize,
                        );
                        b.smem[x.2..x.2 + x.4].fill(0);
                        b.smem[x.2..x.2 + x.5].copy_from_slice(&self.mem[x.3 as usize..x.3 as usize + x.5]);
                    } else {
                        w.q.push(x)
                    }
                }
            }
            Op::Bra(_) | Op::Bar | Op::Ret => unreachable!(),
        }
        Ok(())
    }
}
struct Block<'a> {
    k: &'a Kernel,
    par: &'a [u8],
    smem: Vec<u8>,
    ssh: Vec<Cell>,
    valid: &'a [bool],
    bid: [u32; 3],
    block: [u32; 3],
    grid: [u32; 3],
    blk: u32,
    interval: u32,
    done: Vec<u32>,
}
#[inline]
fn rd(m: &[u8], o: usize, n: usize) -> u64 {
    let mut v = [0u8; 8];
    v[..n].copy_from_slice(&m[o..o + n]);
    u64::from_le_bytes(v)
}
#[inline]
pub fn f16_to_f32(h: u16) -> f32 {
    let (s, e, m) = ((h as u32 & 0x8000) << 16, h as u32 >> 10 & 31, h as u32 & 1023);
    match e {
        0 => {
            let v = m as f32 * 5.960_464_5e-8;
            if s != 0 {
                -v
            } else {
                v
            }
        }
        31 => f32::from_bits(s | 0x7f80_0000 | m << 13),
        _ => f32::from_bits(s | (e + 112) << 23 | m << 13),
    }
}
pub fn f32_to_f16(f: f32) -> u16 {
    let b = f.to_bits();
    let s = (b >> 16 & 0x8000) as u16;
    let b = b & 0x7fff_ffff;
    if b >= 0x7f80_0000 {
        return s | 0x7c00 | if b > 0x7f80_0000 { 0x200 } else { 0 };
    }
    if b >= 0x477f_f000 {
        return s | 0x7c00;
    }
    if b < 0x3300_0001 {
        return s;
    }
    let e = (b >> 23) as i32 - 127;
    let m = (b & 0x7f_ffff) | 0x80_0000;
    let sh = if e < -14 { (13 + -14 - e) as u32 } else { 13 };
    let (mut v, rem, half) = (m >> sh, m & ((1 << sh) - 1), 1u32 << (sh - 1));
    if rem > half || (rem == half && v & 1 == 1) {
        v += 1
    }
    s | if e < -14 {
        v as u16
    } else {
        (v + (((e + 14) as u32) << 10)) as u16
    }
}
