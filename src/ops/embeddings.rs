//! Token ids to the rows that the first layer reads.

use candle_core::{Device, Result, Tensor};

use super::fast::{Embed, Tables};
use super::{FastKernels, Kernels, LayerNorm, TableGradients, read, read2, training};

/// Tables of word, position and (in BERT) token-type embeddings with the normalisation after their sum.
#[derive(Debug, Clone)]
pub struct Embeddings {
    /// `[vocabulary, D]`
    pub words: Tensor,
    /// `[positions, D]`
    pub positions: Tensor,
    /// `[types, D]`
    pub token_types: Option<Tensor>,
    /// Over `D`.
    pub norm: LayerNorm,
    /// Of the tables, where the CPU kernels learn them.
    pub gradients: Option<TableGradients>,
}

impl Embeddings {
    /// Adds up and normalises each token's embeddings: ids `[T]` → `[T, D]`.
    ///
    /// # Errors
    /// An id that is not in its table.
    pub fn forward(
        &self,
        input_ids: &[u32],
        position_ids: &[u32],
        token_type_ids: &[u32],
        kernels: Kernels,
    ) -> Result<Tensor> {
        let types = self.token_types.as_ref();
        let tokens = input_ids.len();
        if position_ids.len() != tokens || (types.is_some() && token_type_ids.len() != tokens) {
            candle_core::bail!(
                "{tokens} tokens have {} positions and {} types",
                position_ids.len(),
                token_type_ids.len()
            );
        }
        for (ids, table) in
            [(input_ids, Some(&self.words)), (position_ids, Some(&self.positions)), (token_type_ids, types)]
        {
            let Some(table) = table else { continue };
            if let Some(id) = ids.iter().find(|id| **id as usize >= table.dims()[0]) {
                candle_core::bail!("id {id} is not in an embedding table of {}", table.dims()[0]);
            }
        }
        match kernels {
            Kernels::Fast(FastKernels { isa, .. }) => {
                let dim = self.words.dim(1)?;
                let embed = |token_types: Option<(&[u32], &[f32])>| {
                    read2(&self.words, &self.positions, |words, positions| {
                        read2(&self.norm.weight, &self.norm.bias, |weight, bias| {
                            let eps = self.norm.eps_f32();
                            let tables = Tables { words, positions, token_types, weight, bias, eps };
                            isa.run(Embed { input_ids, position_ids, tables })
                        })
                    })?
                };
                let out = match types {
                    Some(types) => read(types, |table| embed(Some((token_type_ids, table))))??,
                    None => embed(None)?,
                };
                Tensor::from_vec(out, (input_ids.len(), dim), &Device::Cpu)
            }
            Kernels::Training(_) => {
                let Some(gradients) = &self.gradients else {
                    candle_core::bail!("embeddings without gradients in training");
                };
                let mut tables = vec![(&self.words, input_ids, gradients.words.clone())];
                if let Some((table, gradient)) = types.zip(gradients.token_types.clone()) {
                    tables.push((table, token_type_ids, gradient));
                }
                tables.push((&self.positions, position_ids, gradients.positions.clone()));
                self.norm.normalise(&training::gather(&tables)?, kernels)
            }
            Kernels::Reference(_) => {
                let device = self.words.device();
                let mut sum = self.words.index_select(&Tensor::new(input_ids, device)?, 0)?;
                if let Some(table) = types {
                    sum = (sum + table.index_select(&Tensor::new(token_type_ids, device)?, 0)?)?;
                }
                sum = (sum + self.positions.index_select(&Tensor::new(position_ids, device)?, 0)?)?;
                self.norm.forward(&sum)
            }
        }
    }
}
