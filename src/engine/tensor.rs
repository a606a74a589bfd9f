//! Host tensors and named sets of them.

use std::collections::BTreeMap;

use super::shape::Shape;

/// A dense tensor in host memory, row-major, fp32.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub shape: Shape,
    pub data: Vec<f32>,
}

impl Tensor {
    pub fn zeros(shape: Shape) -> Self {
        Tensor { shape, data: vec![0.0; shape.len()] }
    }

    pub fn full(shape: Shape, value: f32) -> Self {
        Tensor { shape, data: vec![value; shape.len()] }
    }

    /// `data.len()` must equal `shape.len()`.
    pub fn new(shape: Shape, data: Vec<f32>) -> Self {
        assert_eq!(shape.len(), data.len(), "a tensor of shape {shape} does not hold {} numbers", data.len());
        Tensor { shape, data }
    }

    pub fn vector(data: Vec<f32>) -> Self {
        Tensor { shape: Shape::vector(data.len()), data }
    }
}

/// Named weights: what a program is compiled with, what a model file holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ParamStore {
    tensors: BTreeMap<String, Tensor>,
}

impl ParamStore {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn insert(&mut self, name: impl Into<String>, tensor: Tensor) {
        self.tensors.insert(name.into(), tensor);
    }

    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    pub fn remove(&mut self, name: &str) -> Option<Tensor> {
        self.tensors.remove(name)
    }

    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter().map(|(k, v)| (k.as_str(), v))
    }

    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Takes over every tensor of `other`, replacing those of the same name.
    pub fn extend(&mut self, other: ParamStore) {
        self.tensors.extend(other.tensors);
    }

    /// Number of scalars in all tensors.
    pub fn scalars(&self) -> usize {
        self.tensors.values().map(|t| t.data.len()).sum()
    }
}
