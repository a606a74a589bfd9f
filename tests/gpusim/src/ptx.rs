//! PTX text to kernels.
use std::fmt;

#[derive(Debug)]
pub struct ParseError(pub String);
impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl std::error::Error for ParseError {}
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Param {
    pub offset: usize,
    pub size: usize,
}
#[derive(Debug)]
pub struct Module {
    pub kernels: Vec<Kernel>,
}
pub struct Kernel {
    pub name: String,
    pub params: Vec<Param>,
    pub(crate) inner: crate::spike::Kernel,
}
impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kernel {}", self.name)
    }
}
impl Kernel {
    /// Bytes of static shared memory.
    pub fn shared_bytes(&self) -> usize {
        self.inner.smem()
    }
    pub fn registers(&self) -> usize {
        self.inner.nregs()
    }
}
pub fn parse(text: &str) -> Result<Module, ParseError> {
    let kernels = crate::spike::parse(text).map_err(ParseError)?;
    Ok(Module {
        kernels: kernels
            .into_iter()
            .map(|inner| Kernel {
                name: inner.name.clone(),
                params: inner.params().iter().map(|&(offset, size)| Param { offset, size }).collect(),
                inner,
            })
            .collect(),
    })
}
