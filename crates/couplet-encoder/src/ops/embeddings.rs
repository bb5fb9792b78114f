//! Embedding tables: token ids to the input of the first layer.

use candle_core::{Device, Result, Tensor};

use super::fast::{self, FastKernels, Isa, Products};
use super::{Kernels, LayerNorm, array, elements, read};

/// The tables of word, position and (in BERT) token-type embeddings, and the layer norm of their sum.
#[derive(Debug, Clone)]
pub struct Embeddings {
    /// The word embeddings, `[vocabulary, D]`.
    pub words: Tensor,
    /// The position embeddings, `[positions, D]`.
    pub positions: Tensor,
    /// The token-type embeddings, `[types, D]`; none if the model has none.
    pub token_types: Option<Tensor>,
    /// The layer norm over `D`.
    pub norm: LayerNorm,
}

impl Embeddings {
    /// Sums and normalizes the embeddings of each token: ids `[T]` → `[T, D]`.
    ///
    /// # Errors
    /// Numbers of ids that differ; an id outside its table; tables and a norm of different widths.
    pub fn forward(
        &self,
        input_ids: &[u32],
        position_ids: &[u32],
        token_type_ids: &[u32],
        kernels: Kernels,
    ) -> Result<Tensor> {
        kernels.backend().embed(&self.check(input_ids, position_ids, token_type_ids)?, &self.norm)
    }

    /// Checks the ids, and returns each table with its ids. The tables are in the order in which PyTorch adds them, as
    /// the order affects the last bit of the sum.
    fn check<'a>(
        &'a self,
        input_ids: &'a [u32],
        position_ids: &'a [u32],
        token_type_ids: &'a [u32],
    ) -> Result<Vec<(&'a Tensor, &'a [u32])>> {
        let types = self.token_types.as_ref().map(|table| (table, token_type_ids));
        let tables = [Some((&self.words, input_ids)), types, Some((&self.positions, position_ids))];
        let tables: Vec<_> = tables.into_iter().flatten().collect();
        let dim = self.words.dims2()?.1;
        if !self.norm.fits(dim) || tables.iter().any(|(table, _)| table.dims().get(1) != Some(&dim)) {
            let tables: Vec<_> = tables.iter().map(|(table, _)| table.dims()).collect();
            candle_core::bail!("tables {tables:?} and a norm of {:?} do not fit each other", self.norm.weight.dims());
        }
        for (table, ids) in &tables {
            if ids.len() != input_ids.len() {
                candle_core::bail!(
                    "{} tokens have {} positions and {} types",
                    input_ids.len(),
                    position_ids.len(),
                    token_type_ids.len()
                );
            }
            if let Some(id) = ids.iter().find(|id| **id as usize >= table.dims()[0]) {
                candle_core::bail!("id {id} is not in an embedding table of {}", table.dims()[0]);
            }
        }
        Ok(tables)
    }
}

/// Calls `f` with the elements of each table and its ids.
pub(super) fn read_tables<R>(tables: &[(&Tensor, &[u32])], f: impl FnOnce(&[(&[f32], &[u32])]) -> R) -> Result<R> {
    let guards: Vec<_> = tables.iter().map(|(table, _)| table.storage_and_layout()).collect();
    let read = guards.iter().zip(tables).map(|((storage, layout), (_, ids))| Ok((elements(storage, layout)?, *ids)));
    Ok(f(&read.collect::<Result<Vec<_>>>()?))
}

/// Embeddings fused with the `N` square layers that read them, for the CPU kernels. The product of each table entry is
/// computed once and cached.
#[derive(Debug)]
pub struct ProjectedEmbeddings<const N: usize> {
    embeddings: Embeddings,
    isa: Isa,
    /// The cached products of the table entries with the layers.
    products: Products,
}

impl<const N: usize> ProjectedEmbeddings<N> {
    /// Takes the weight `[D, D]` and the bias `[D]` of each layer.
    ///
    /// # Errors
    /// Shapes other than the above.
    pub fn new(embeddings: Embeddings, layers: [(&Tensor, &Tensor); N], kernels: FastKernels) -> Result<Self> {
        let (isa, dim) = (kernels.isa, embeddings.words.dim(1)?);
        if let Some((weight, bias)) =
            layers.iter().find(|(weight, bias)| weight.dims() != [dim; 2] || bias.dims() != [dim])
        {
            candle_core::bail!("weight {:?} and bias {:?} do not fit {dim} columns", weight.dims(), bias.dims());
        }
        let entries = embeddings.check(&[], &[], &[])?.iter().map(|(table, _)| table.dims()[0]).sum();
        let weight = Tensor::cat(&layers.map(|(weight, _)| weight), 0)?;
        let bias = Tensor::cat(&layers.map(|(_, bias)| bias), 0)?;
        let norm = &embeddings.norm;
        let products = read([&weight, &bias, &norm.weight, &norm.bias], |[weight, bias, norm_weight, norm_bias]| {
            Products::pack(isa, weight, bias, (norm_weight, norm_bias), entries)
        })?;
        Ok(Self { embeddings, isa, products })
    }

    /// Computes the normalized embeddings `[T, D]` of ids `[T]`, and the output `[T, D]` of each layer.
    ///
    /// # Errors
    /// Numbers of ids that differ; an id outside its table.
    pub fn forward(
        &self,
        input_ids: &[u32],
        position_ids: &[u32],
        token_type_ids: &[u32],
    ) -> Result<(Tensor, [Tensor; N])> {
        let Self { embeddings, isa, products } = self;
        let tables = embeddings.check(input_ids, position_ids, token_type_ids)?;
        let (x, scales) = fast::embed(*isa, &tables, &embeddings.norm)?;
        let (tokens, dim) = x.dims2()?;
        let outs = read_tables(&tables, |tables| products.project(*isa, tables, &scales, dim))?;
        let outs = outs.into_iter().map(|out| Tensor::from_vec(out, (tokens, dim), &Device::Cpu));
        Ok((x, array(outs.collect::<Result<_>>()?)?))
    }
}
