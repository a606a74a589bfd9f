//! A tensor as a file holds it: any rank, reals or integers.

use super::Fault;

/// Element types that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataType {
    F16,
    Bf16,
    F32,
    F64,
    U8,
    I8,
    I16,
    I32,
    I64,
    Bool,
}

impl DataType {
    pub const fn bytes(self) -> usize {
        match self {
            DataType::U8 | DataType::I8 | DataType::Bool => 1,
            DataType::F16 | DataType::Bf16 | DataType::I16 => 2,
            DataType::F32 | DataType::I32 => 4,
            DataType::F64 | DataType::I64 => 8,
        }
    }

    const fn is_real(self) -> bool {
        matches!(self, DataType::F16 | DataType::Bf16 | DataType::F32 | DataType::F64)
    }
}

/// Elements, row-major.
#[derive(Clone, Debug, PartialEq)]
pub enum RawData {
    /// From any floating-point type; double precision is rounded.
    Real(Vec<f32>),
    Integer(Vec<i64>),
}

#[derive(Clone, Debug, PartialEq)]
pub struct RawTensor {
    pub shape: Vec<usize>,
    /// The type in the file.
    pub dtype: DataType,
    pub data: RawData,
}

impl RawTensor {
    /// A real tensor. The number of elements must be the shape's.
    pub fn real(shape: Vec<usize>, data: Vec<f32>) -> Self {
        assert_eq!(shape.iter().product::<usize>(), data.len(), "{shape:?} does not hold {}", data.len());
        RawTensor { shape, dtype: DataType::F32, data: RawData::Real(data) }
    }

    pub fn len(&self) -> usize {
        match &self.data {
            RawData::Real(data) => data.len(),
            RawData::Integer(data) => data.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Elements as reals; integers beyond 2^24 lose precision.
    pub fn into_reals(self) -> Vec<f32> {
        match self.data {
            RawData::Real(data) => data,
            RawData::Integer(data) => data.into_iter().map(|x| x as f32).collect(),
        }
    }

    /// From little-endian bytes that hold exactly the elements of `shape`, row-major.
    pub(super) fn from_bytes(dtype: DataType, shape: Vec<usize>, bytes: &[u8]) -> Result<Self, Fault> {
        if element_count(&shape)?.checked_mul(dtype.bytes()) != Some(bytes.len()) {
            return Err(Fault::damaged(format!("{} bytes do not hold {shape:?} of {dtype:?}", bytes.len())));
        }
        let data = if dtype.is_real() {
            RawData::Real(bytes.chunks_exact(dtype.bytes()).map(|b| real(dtype, b)).collect())
        } else {
            RawData::Integer(bytes.chunks_exact(dtype.bytes()).map(|b| integer(dtype, b)).collect())
        };
        Ok(RawTensor { shape, dtype, data })
    }

    /// Gathers a strided view (strides and offset in elements) of a storage's little-endian bytes.
    pub(super) fn from_strided(
        dtype: DataType,
        storage: &[u8],
        offset: usize,
        shape: Vec<usize>,
        strides: &[usize],
    ) -> Result<Self, Fault> {
        let count = element_count(&shape)?;
        let size = dtype.bytes();
        let outside = || Fault::damaged(format!("a tensor {shape:?} reaches outside its storage"));
        if shape.len() != strides.len() {
            return Err(Fault::damaged(format!("{} strides for the shape {shape:?}", strides.len())));
        }
        if count > 0 {
            let last = shape.iter().zip(strides).try_fold(offset, |at, (&extent, &stride)| {
                (extent - 1).checked_mul(stride).and_then(|step| at.checked_add(step))
            });
            let end = last.and_then(|last| last.checked_add(1)).and_then(|end| end.checked_mul(size));
            if end.is_none_or(|end| end > storage.len()) {
                return Err(outside());
            }
        }
        if is_contiguous(&shape, strides) {
            let start = if count == 0 { 0 } else { offset * size };
            let bytes = storage.get(start..start + count * size).ok_or_else(outside)?;
            return Self::from_bytes(dtype, shape, bytes);
        }
        let mut bytes = Vec::with_capacity(count * size);
        let mut index = vec![0usize; shape.len()];
        let mut at = offset;
        for _ in 0..count {
            bytes.extend_from_slice(storage.get(at * size..(at + 1) * size).ok_or_else(outside)?);
            // An odometer over the axes; `at` follows it, modulo 2^64 where an unused stride is absurd.
            for axis in (0..shape.len()).rev() {
                index[axis] += 1;
                at = at.wrapping_add(strides[axis]);
                if index[axis] < shape[axis] {
                    break;
                }
                at = at.wrapping_sub(strides[axis].wrapping_mul(shape[axis]));
                index[axis] = 0;
            }
        }
        Self::from_bytes(dtype, shape, &bytes)
    }
}

/// Number of elements, if the product is sane.
pub(super) fn element_count(shape: &[usize]) -> Result<usize, Fault> {
    shape
        .iter()
        .try_fold(1usize, |n, &extent| n.checked_mul(extent))
        .filter(|&n| n <= isize::MAX as usize / 8)
        .ok_or_else(|| Fault::damaged(format!("the shape {shape:?} has too many elements")))
}

fn is_contiguous(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1usize;
    for (&extent, &stride) in shape.iter().zip(strides).rev() {
        // The stride of an axis of one element is never used; PyTorch leaves odd values there.
        if extent != 1 && stride != expected {
            return shape.contains(&0);
        }
        expected = expected.saturating_mul(extent);
    }
    true
}

fn array<const N: usize>(b: &[u8]) -> [u8; N] {
    b.try_into().expect("chunks_exact yields chunks of the type's size")
}

fn real(dtype: DataType, b: &[u8]) -> f32 {
    match dtype {
        DataType::F16 => half::f16::from_le_bytes(array(b)).to_f32(),
        DataType::Bf16 => half::bf16::from_le_bytes(array(b)).to_f32(),
        DataType::F64 => f64::from_le_bytes(array(b)) as f32,
        _ => f32::from_le_bytes(array(b)),
    }
}

fn integer(dtype: DataType, b: &[u8]) -> i64 {
    match dtype {
        DataType::U8 => b[0].into(),
        DataType::Bool => (b[0] != 0).into(),
        DataType::I8 => i8::from_le_bytes(array(b)).into(),
        DataType::I16 => i16::from_le_bytes(array(b)).into(),
        DataType::I32 => i32::from_le_bytes(array(b)).into(),
        _ => i64::from_le_bytes(array(b)),
    }
}
