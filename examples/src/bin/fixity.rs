//! The workflow `fixity` as an image of its own.

use dormouse_examples::fixity;

dormouse_sdk::main!(fixity);
