//! Every operation on the GPU, held against the specification: the same cases that hold the CPU's fast
//! path, once with fp32 parameters as operands and once with fp16 inputs.

use half::f16;

use super::simulator::gpu;
use super::{Priority, Program};
use crate::engine::cpu::tests::{Case, cases, device_cases, norm_error, params_with_weights, with_loss};
use crate::engine::cpu::{self};
use crate::engine::{Graph, Op, Options, ParamStore, Threads};

/// What the operands of a case are.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Operands {
    Parameters,
    Inputs,
}

/// Numbers that fp16 holds exactly: what is compared is the arithmetic, not the rounding of operands.
fn rounded(params: &ParamStore) -> ParamStore {
    let mut out = ParamStore::new();
    for (name, tensor) in params.iter() {
        let mut tensor = tensor.clone();
        tensor.data.iter_mut().for_each(|v| *v = f16::from_f32(*v).to_f32());
        out.insert(name, tensor);
    }
    out
}

/// The same graph, its parameters fed as inputs.
fn fed(g: &Graph) -> Graph {
    let mut g = g.clone();
    for node in &mut g.nodes {
        if let Op::Param { name } = &node.op {
            node.op = Op::Input { name: name.clone() };
        }
    }
    g
}

fn check(case: &Case, operands: Operands, backward: bool) -> Vec<String> {
    let (g, _, grads) = match backward && !case.wrt.is_empty() {
        true => with_loss(case),
        false => (case.graph.clone(), case.y, vec![]),
    };
    let names: Vec<String> = (0..grads.len()).map(|i| format!("grad {i}")).collect();
    let mut outputs = vec![("y", case.y)];
    if backward {
        outputs = names.iter().map(String::as_str).zip(grads.iter().copied()).collect();
    }
    let params = rounded(&params_with_weights(case));
    let mut plain =
        cpu::Program::compile(&g, &outputs, &params, &Threads::new(1), Options::REFERENCE).unwrap();
    plain.run();

    let g = if operands == Operands::Inputs { fed(&g) } else { g };
    let options = Options::default();
    let compiled = Program::compile(&g, &outputs, &params, &gpu(), Priority::High, options);
    let mut program = match compiled {
        Ok(program) => program,
        Err(e) => return vec![format!("{} ({operands:?}): {e}", case.name)],
    };
    if operands == Operands::Inputs {
        for (name, tensor) in params.iter() {
            // An operand that no live node reads has no place to be put.
            if let Ok(input) = program.input_mut(name) {
                input.copy_from_slice(&tensor.data);
            }
        }
    }
    let mut wrong = vec![];
    for run in 0..2 {
        if run == 1 {
            program.poison().unwrap();
        }
        if let Err(e) = program.run() {
            return vec![format!("{} ({operands:?}): {e}", case.name)];
        }
        for (name, _) in &outputs {
            let error = norm_error(program.output(name).unwrap(), plain.output(name).unwrap());
            // fp16 rounds each stored element by at most 2⁻¹¹ = 4.9e-4 of itself. A gradient passes
            // through up to four such stores.
            let tolerance = if *name == "y" { 1e-3 } else { 2e-3 };
            if error.is_nan() || error > tolerance {
                wrong.push(format!(
                    "{} ({operands:?}, run {run}): `{name}` differs by {error:.1e}",
                    case.name
                ));
            }
        }
    }
    wrong
}

/// `ONLY=part of a name` in the environment checks the cases of that name alone.
fn check_all(backward: bool) {
    let only = std::env::var("ONLY").unwrap_or_default();
    let mut wrong = vec![];
    for case in cases().iter().chain(&device_cases()).filter(|c| c.name.contains(&only)) {
        for operands in [Operands::Parameters, Operands::Inputs] {
            wrong.extend(check(case, operands, backward));
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn every_operation_equals_the_specification() {
    check_all(false);
}

#[test]
fn every_gradient_equals_the_specification() {
    check_all(true);
}
