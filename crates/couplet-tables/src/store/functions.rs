//! SQL functions of texts: the key of their score, and the reason why they cannot be scored.

use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryBuilder, StringBuilder};
use arrow::datatypes::DataType;
use couplet_encoder::scorer::{TextColumn, Window};
use datafusion::common::{Result, internal_err};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

use crate::predict::text_values;

/// Returns an expression for the key of a text or pair: 16 bytes, or NULL if it cannot be scored.
#[must_use]
pub fn text_key(columns: &[String]) -> Expr {
    call(Output::Key, columns)
}

/// Returns an expression for the reason why a text or pair cannot be scored; NULL if it can.
#[must_use]
pub fn text_error(columns: &[String]) -> Expr {
    call(Output::Error, columns)
}

fn call(output: Output, columns: &[String]) -> Expr {
    let function = TextFunction {
        output,
        names: columns.to_vec(),
        signature: Signature::any(columns.len(), Volatility::Immutable),
    };
    let columns = columns.iter().map(|name| Expr::Column(datafusion::common::Column::from_name(name)));
    ScalarUDF::from(function).call(columns.collect())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Output {
    Key,
    Error,
}

/// A function of one or two text columns. Errors use the column names.
#[derive(Debug, PartialEq, Eq, Hash)]
struct TextFunction {
    output: Output,
    names: Vec<String>,
    signature: Signature,
}

impl ScalarUDFImpl for TextFunction {
    fn name(&self) -> &'static str {
        match self.output {
            Output::Key => "couplet_text_key",
            Output::Error => "couplet_text_error",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(match self.output {
            Output::Key => DataType::Binary,
            Output::Error => DataType::Utf8,
        })
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let rows = args.number_rows;
        let mut columns = self.names.iter().zip(args.args).map(|(name, values)| -> Result<TextColumn> {
            Ok(TextColumn { name: name.clone(), values: text_values(&values.to_array(rows)?)? })
        });
        let Some(text) = columns.next().transpose()? else { return internal_err!("there is a column of texts") };
        let window = Window::new(text, columns.next().transpose()?);
        let output: ArrayRef = match self.output {
            Output::Key => {
                let mut keys = BinaryBuilder::with_capacity(rows, 16 * rows);
                (0..rows).for_each(|row| keys.append_option(window.key(row)));
                Arc::new(keys.finish())
            }
            Output::Error => {
                let mut errors = StringBuilder::new();
                (0..rows).for_each(|row| errors.append_option(window.rejection(row).map(|r| r.to_string())));
                Arc::new(errors.finish())
            }
        };
        Ok(ColumnarValue::Array(output))
    }
}
