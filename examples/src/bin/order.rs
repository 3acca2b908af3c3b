//! The workflow `order` as an image of its own.

use dormouse_examples::order;

dormouse_sdk::main!(order);
