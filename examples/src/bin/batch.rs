//! The workflow `batch` as an image of its own.

use dormouse_examples::batch;

dormouse_sdk::main!(batch);
