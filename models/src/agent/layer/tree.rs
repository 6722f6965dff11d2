//! The TOC of a layer. The product's tree adds the names that containers see.

use estargz::Toc;

#[derive(Debug)]
pub struct Tree {
    toc: Toc,
}

impl Tree {
    pub fn new(toc: Toc) -> Self {
        Self { toc }
    }

    pub fn toc(&self) -> &Toc {
        &self.toc
    }
}
