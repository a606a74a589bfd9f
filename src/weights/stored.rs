//! Reading safetensors: 8 bytes of header length, a JSON header, raw row-major data.

use std::collections::BTreeMap;

use safetensors::Dtype;
use safetensors::tensor::Metadata;

use super::raw::{DataType, RawTensor};
use super::{Content, Fault, MAX_TENSORS};

/// The format's own limit.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// The header's description and the data behind it.
///
/// Not `SafeTensors::deserialize`: it adds the claimed end of the data to the header's length without a
/// check, so that offsets near 2^64 wrap round to the file's true length and slice out of bounds.
fn header(bytes: &[u8]) -> Result<(Metadata, &[u8]), Fault> {
    let (length, rest) = bytes
        .split_first_chunk::<8>()
        .ok_or_else(|| Fault::damaged(format!("it ends after {} bytes", bytes.len())))?;
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES {
        return Err(Fault::damaged(format!("its header claims {length} bytes, at most {MAX_HEADER_BYTES}")));
    }
    let (header, data) = rest
        .split_at_checked(length as usize)
        .ok_or_else(|| Fault::damaged(format!("it ends after {} of {length} bytes of header", rest.len())))?;
    let metadata: Metadata = serde_json::from_slice(header)
        .map_err(|error| Fault::damaged(format!("its header is wrong: {error}")))?;
    let claimed = metadata.data_len();
    if claimed != data.len() {
        let what = format!("it has {} bytes of tensors where its header describes {claimed}", data.len());
        return Err(Fault::Damaged(what));
    }
    Ok((metadata, data))
}

pub(super) fn read(bytes: &[u8]) -> Result<Content, Fault> {
    let (metadata, data) = header(bytes)?;
    let described = metadata.tensors();
    if described.len() > MAX_TENSORS {
        return Err(Fault::unsupported(format!(
            "it holds {} tensors, at most {MAX_TENSORS}",
            described.len()
        )));
    }
    let mut tensors = BTreeMap::new();
    for (name, info) in described {
        let dtype = data_type(info.dtype)
            .ok_or_else(|| Fault::unsupported(format!("tensor `{name}` is of type {:?}", info.dtype)))?;
        let (start, end) = info.data_offsets;
        let slice = data
            .get(start..end)
            .ok_or_else(|| Fault::damaged(format!("tensor `{name}` lies outside the file")))?;
        let tensor = RawTensor::from_bytes(dtype, info.shape.clone(), slice)?;
        tensors.insert(name, tensor);
    }
    let metadata = metadata.metadata().clone().unwrap_or_default().into_iter().collect();
    Ok(Content { tensors, metadata })
}

fn data_type(dtype: Dtype) -> Option<DataType> {
    Some(match dtype {
        Dtype::F16 => DataType::F16,
        Dtype::BF16 => DataType::Bf16,
        Dtype::F32 => DataType::F32,
        Dtype::F64 => DataType::F64,
        Dtype::U8 => DataType::U8,
        Dtype::I8 => DataType::I8,
        Dtype::I16 => DataType::I16,
        Dtype::I32 => DataType::I32,
        Dtype::I64 => DataType::I64,
        Dtype::BOOL => DataType::Bool,
        _ => return None,
    })
}
