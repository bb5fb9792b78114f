//! Compares the backward pass of every operator with candle's automatic differentiation of the reference operators.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Var;

use super::*;
use crate::ops::{Embeddings, Kernels, attention as attend, attention_with_dropout, linear_many};

/// The maximum error of a gradient relative to its norm. Small shapes have few numbers, which may cancel.
const TOLERANCE: f64 = 2e-5;

/// Returns pseudo-random numbers in [-1, 1), the same in every run; tensors with different seeds differ.
fn random(seed: u64, shape: &[usize]) -> Tensor {
    let value = |i: u64| (mix64(mix64(seed) ^ i) >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
    let values: Vec<f32> = (0..shape.iter().product::<usize>() as u64).map(value).collect();
    Tensor::from_vec(values, shape, &candle_core::Device::Cpu).unwrap()
}

fn values(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

fn fused() -> Option<TrainingKernels> {
    match Kernels::for_training(&candle_core::Device::Cpu) {
        Kernels::Training(kernels) => Some(kernels),
        _ => None,
    }
}

/// Results and gradients by name.
type Outcome = BTreeMap<String, Vec<f32>>;

/// Runs the forward pass, then the backward pass from random gradients of the results.
fn outcome(
    inputs: &[Tensor],
    parameters: &[Tensor],
    forward: impl Fn(&[Tensor], &[Tensor], Kernels) -> Result<Vec<Tensor>>,
    kernels: Kernels,
) -> Outcome {
    let mut outcome = Outcome::new();
    let gradient_of = |r: usize, result: &Tensor| random(900 + r as u64, result.dims());
    if let Kernels::Training(fast) = kernels {
        let trainable = parameters.iter().map(|tensor| {
            let mut panels = PackedWeight::default();
            if let Ok((outputs, _)) = tensor.dims2() {
                panels.pack(fast.isa, &values(tensor), outputs);
            }
            (tensor.id(), Parameter { gradient: Arc::default(), panels: Some(Arc::new(panels)) })
        });
        let trainable: Arc<Parameters> = Arc::new(trainable.collect());
        let (results, tape) = Tape::record(trainable.clone(), || forward(inputs, parameters, kernels)).unwrap();
        for (r, result) in results.iter().enumerate() {
            outcome.insert(format!("result {r}"), values(result));
        }
        let output_gradients =
            results.iter().enumerate().map(|(r, result)| (result.id(), values(&gradient_of(r, result))));
        let mut gradients = tape.backward(output_gradients).unwrap();
        for (i, input) in inputs.iter().enumerate() {
            outcome.insert(format!("input {i}"), gradients.remove(&input.id()).unwrap());
        }
        for (i, parameter) in parameters.iter().enumerate() {
            let gradient = &trainable[&parameter.id()].gradient;
            let mut sum = gradient.dense_mut(parameter.elem_count()).clone();
            for rows in gradient.take_rows() {
                let dim = parameter.dim(1).unwrap();
                for (id, row) in rows.ids.iter().zip(rows.gradients.chunks_exact(dim)) {
                    sum[*id as usize * dim..].iter_mut().zip(row).for_each(|(sum, x)| *sum += *x);
                }
            }
            outcome.insert(format!("parameter {i}"), sum);
        }
    } else {
        let var = |x: &Tensor| Var::from_tensor(x).unwrap();
        let inputs: Vec<Var> = inputs.iter().map(var).collect();
        let variables: Vec<Var> = parameters.iter().map(var).collect();
        let tensors = |variables: &[Var]| variables.iter().map(|v| v.as_tensor().clone()).collect::<Vec<Tensor>>();
        let results = forward(&tensors(&inputs), &tensors(&variables), kernels).unwrap();
        let mut loss = Tensor::new(0f32, &candle_core::Device::Cpu).unwrap();
        for (r, result) in results.iter().enumerate() {
            outcome.insert(format!("result {r}"), values(result));
            loss = (loss + (result * gradient_of(r, result)).unwrap().sum_all().unwrap()).unwrap();
        }
        let gradients = loss.backward().unwrap();
        for (kind, variables) in [("input", &inputs), ("parameter", &variables)] {
            for (i, variable) in variables.iter().enumerate() {
                outcome.insert(format!("{kind} {i}"), values(gradients.get(variable).unwrap()));
            }
        }
    }
    outcome
}

#[track_caller]
fn compare(
    what: &str,
    inputs: &[Tensor],
    parameters: &[Tensor],
    forward: impl Fn(&[Tensor], &[Tensor], Kernels) -> Result<Vec<Tensor>>,
) {
    // Nothing to compare on a machine without the kernels.
    let Some(fast) = fused() else { return };
    let ours = outcome(inputs, parameters, &forward, Kernels::Training(fast));
    let theirs = outcome(inputs, parameters, &forward, Kernels::reference(candle_core::DType::F32));
    assert!(ours.keys().eq(theirs.keys()), "{what}");
    for (name, expected) in &theirs {
        let ours = &ours[name];
        assert_eq!(ours.len(), expected.len(), "{what}: {name}");
        let norm = |x: f64| x.sqrt();
        let square = |x: f32| f64::from(x) * f64::from(x);
        let off = norm(ours.iter().zip(expected).map(|(x, y)| square(x - y)).sum());
        let size = norm(expected.iter().map(|x| square(*x)).sum());
        // The second term is for gradients that are 0 except for rounding, such as that of a constant.
        assert!(
            off <= TOLERANCE * (size + 0.05 * (expected.len() as f64).sqrt()),
            "{what}: {name}: off by {off} of {size}"
        );
    }
}

const ROWS: [usize; 7] = [1, 2, 5, 12, 13, 97, 200];
const LAYERS: [(usize, usize); 7] = [(1, 17), (12, 20), (7, 33), (31, 5), (32, 64), (64, 32), (100, 113)];

/// Returns a weight that keeps the scale of its inputs, and a bias.
fn layer(seed: u64, inputs: usize, outputs: usize) -> [Tensor; 2] {
    let weight = (random(seed, &[outputs, inputs]) * (1.0 / (inputs as f64).sqrt())).unwrap();
    [weight, random(seed + 1, &[outputs])]
}

fn linear(parameters: &[Tensor], kernels: Kernels) -> Linear {
    Linear::new(&parameters[0], &parameters[1], kernels).unwrap()
}

fn norm(parameters: &[Tensor]) -> LayerNorm {
    LayerNorm::new(parameters[0].clone(), parameters[1].clone(), 1e-12)
}

/// Returns a mask that drops a third of the elements.
fn dropout(place: Place, cu_rows: &[u32]) -> Option<Dropout> {
    let rates = Rates { attention: 0.33, attention_output: 0.33, ..Rates::NONE };
    Noise::new(1, 2, rates, (5..).take(cu_rows.len() - 1).collect()).at(place, cu_rows)
}

#[test]
fn layers() {
    for (inputs, outputs) in LAYERS {
        let parameters = layer(1, inputs, outputs);
        for rows in ROWS {
            let x = [random(rows as u64, &[rows, inputs])];
            compare(&format!("{rows} rows {inputs} -> {outputs}"), &x, &parameters, |x, parameters, kernels| {
                Ok(vec![linear(parameters, kernels).forward(&x[0])?])
            });
            for activation in Activation::ALL {
                let what = format!("{rows} rows {inputs} -> {outputs}, {activation:?}");
                compare(&what, &x, &parameters, |x, parameters, kernels| {
                    Ok(vec![linear(parameters, kernels).forward_activated(&x[0], activation)?])
                });
            }
        }
    }
}

#[test]
fn several_layers_with_the_same_input() {
    let parameters = [layer(1, 20, 12), layer(3, 20, 33), layer(5, 20, 7)].concat();
    for rows in ROWS {
        compare(&format!("{rows} rows"), &[random(7, &[rows, 20])], &parameters, |x, parameters, kernels| {
            let layers: Vec<Linear> = parameters.chunks(2).map(|p| linear(p, kernels)).collect();
            Ok(linear_many(&x[0], [&layers[0], &layers[1], &layers[2]])?.into())
        });
    }
}

#[test]
fn layers_with_dropout_residual_and_norm() {
    for (inputs, outputs) in LAYERS {
        let mut parameters = layer(1, inputs, outputs).to_vec();
        parameters.extend([random(3, &[outputs]), random(4, &[outputs])]);
        for rows in ROWS {
            let x = [random(5, &[rows, inputs]), random(6, &[rows, outputs])];
            let cu_rows = [0, rows as u32 / 3, rows as u32 / 3, rows as u32];
            for drops in [false, true] {
                let what = format!("{rows} rows {inputs} -> {outputs}, dropout: {drops}");
                compare(&what, &x, &parameters, |x, parameters, kernels| {
                    let dropout = dropout(Place::AttentionOutput(1), &cu_rows).filter(|_| drops);
                    let (layer, norm) = (linear(&parameters[..2], kernels), norm(&parameters[2..]));
                    Ok(vec![layer.forward_dropout_add_norm(&x[0], dropout, &x[1], &norm)?])
                });
            }
        }
    }
}

#[test]
fn small_operators() {
    for rows in ROWS {
        let x = [random(5, &[rows, 33])];
        compare("norm", &x, &[random(3, &[33]), random(4, &[33])], |x, parameters, kernels| {
            Ok(vec![norm(parameters).normalise(&x[0], kernels)?])
        });
        compare("dropout", &x, &[], |x, _, kernels| {
            let dropout = dropout(Place::AttentionOutput(1), &[0, rows as u32]);
            Ok(vec![kernels.drop_elements(&x[0], dropout)?])
        });
        compare("relu and tanh", &x, &[], |x, _, kernels| {
            Ok(vec![kernels.pointwise(&x[0], Pointwise::Relu)?, kernels.pointwise(&x[0], Pointwise::Tanh)?])
        });
        let selected: Vec<u32> = (0..rows as u32).step_by(3).collect();
        compare("selection", &x, &[], |x, _, kernels| Ok(vec![kernels.select_rows(&x[0], &selected)?]));
    }
}

fn inputs<'a>(x: &'a [Tensor], cu_queries: &'a [u32], cu_keys: &'a [u32], heads: usize) -> Attention<'a> {
    Attention { query: &x[0], key: &x[1], value: &x[2], cu_queries, cu_keys, heads }
}

#[test]
fn attention_of_sequences() {
    let bounds = |lengths: &[u32]| {
        let ends = lengths.iter().scan(0, |end, length| {
            *end += length;
            Some(*end)
        });
        std::iter::once(0).chain(ends).collect::<Vec<u32>>()
    };
    for (dim, heads) in [(12, 3), (20, 1), (5, 5), (64, 2), (66, 2)] {
        for (queries, keys) in [
            (&[1][..], &[1][..]),
            (&[3, 1, 40, 12], &[3, 1, 40, 12]),
            (&[1, 1, 1, 1], &[3, 1, 40, 12]),
            (&[2, 0, 5, 1], &[3, 1, 40, 12]),
            (&[130], &[130]),
        ] {
            let (cu_queries, cu_keys) = (bounds(queries), bounds(keys));
            let tensor = |seed, rows: &[u32], scale: f64| {
                (random(seed, &[*rows.last().unwrap() as usize, dim]) * scale).unwrap()
            };
            // Large enough for a softmax that is far from uniform.
            let x = [tensor(1, &cu_queries, 4.0), tensor(2, &cu_keys, 2.0), tensor(3, &cu_keys, 1.0)];
            compare(&format!("{heads} heads of {dim}, queries {queries:?}"), &x, &[], |x, _, kernels| {
                Ok(vec![attend(&inputs(x, &cu_queries, &cu_keys, heads), kernels)?])
            });
            compare(&format!("{heads} heads of {dim}, queries {queries:?}, dropout"), &x, &[], |x, _, kernels| {
                let dropout = dropout(Place::Attention(1), &cu_queries);
                let context = attention_with_dropout(&inputs(x, &cu_queries, &cu_keys, heads), dropout, kernels)?;
                Ok(vec![context])
            });
        }
    }
}

#[test]
fn embeddings() {
    let ids: Vec<u32> = (0..77).map(|i| i * 31 % 50).collect();
    let positions: Vec<u32> = (0..77).map(|i| i % 30).collect();
    let types: Vec<u32> = (0..77).map(|i| i / 3 % 2).collect();
    for dim in [12, 33] {
        let tables = [random(1, &[50, dim]), random(2, &[30, dim]), random(3, &[2, dim])];
        let parameters = [&tables[..], &[random(4, &[dim]), random(5, &[dim])]].concat();
        compare(&format!("embeddings of {dim}"), &[], &parameters, |_, parameters, kernels| {
            let embeddings = Embeddings {
                words: parameters[0].clone(),
                positions: parameters[1].clone(),
                token_types: Some(parameters[2].clone()),
                norm: norm(&parameters[3..]),
            };
            Ok(vec![embeddings.forward(&ids, &positions, &types, kernels)?])
        });
    }
}

#[test]
fn an_operator_that_does_not_record_itself_is_an_error() {
    let Some(fast) = fused() else { return };
    let kernels = Kernels::Training(fast);
    let (result, tape) =
        Tape::record(Arc::default(), || kernels.pointwise(&random(1, &[2, 3]), Pointwise::Relu)?.affine(2.0, 1.0))
            .unwrap();
    let error = tape.backward([(result.id(), vec![1.0; 6])]).unwrap_err().to_string();
    assert!(error.contains("the gradient does not reach `elementwise`"), "{error}");
}
