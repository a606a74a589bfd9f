//! One judge for several lines of one model, so that their frames can be judged at once.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::desk::Company;
use super::{Judge, Problem};
use crate::imaging::{FrameView, Heatmap, Roi};
use crate::model::Thresholds;
use crate::pages::Pages;
use crate::realnet::Judgement;

/// Where the judge is while it judges nothing: it is taken out for that, so that no lock is held meanwhile.
type Place = Mutex<Option<Box<dyn Judge>>>;

/// A line's part in a judge. Only one of its lines may use it at a time; the inference thread alone does.
pub struct Partner {
    place: Arc<Place>,
    thresholds: Thresholds,
    most: usize,
    /// Of the last frame that was judged alone.
    map: Heatmap,
}

/// Finds the judge again as long as any line has a part in it.
#[derive(Clone)]
pub struct Known {
    place: Weak<Place>,
    thresholds: Thresholds,
    most: usize,
}

impl Known {
    /// A part for one line more.
    pub fn partner(&self) -> Option<Partner> {
        let place = self.place.upgrade()?;
        Some(Partner { place, thresholds: self.thresholds, most: self.most, map: nothing() })
    }
}

fn nothing() -> Heatmap {
    Heatmap { width: 0, height: 0, data: Vec::new() }
}

impl Partner {
    /// `most`: frames that it judges at once.
    pub fn new(judge: Box<dyn Judge>, most: usize) -> Self {
        let thresholds = judge.thresholds();
        Partner { place: Arc::new(Mutex::new(Some(judge))), thresholds, most, map: nothing() }
    }

    pub fn known(&self) -> Known {
        Known { place: Arc::downgrade(&self.place), thresholds: self.thresholds, most: self.most }
    }

    /// `None` while another line uses it.
    fn with<R>(&self, f: impl FnOnce(&mut dyn Judge) -> R) -> Option<R> {
        let take = || self.place.lock().unwrap_or_else(PoisonError::into_inner);
        let mut judge = take().take()?;
        let result = f(judge.as_mut());
        *take() = Some(judge);
        Some(result)
    }
}

impl Judge for Partner {
    fn thresholds(&self) -> Thresholds {
        self.thresholds
    }

    fn judge(&mut self, frame: &FrameView<'_>, roi: Option<Roi>) -> Result<Judgement<'_>, Problem> {
        let mut map = std::mem::replace(&mut self.map, nothing());
        let judged = self.with(|judge| {
            let judgement = judge.judge(frame, roi)?;
            (map.width, map.height) = (judgement.map_width, judgement.map_height);
            map.data.clear();
            map.data.extend_from_slice(judgement.map);
            Ok(judgement.score)
        });
        self.map = map;
        let score = judged.unwrap_or_else(|| Err(busy()))?;
        let Heatmap { width, height, data } = &self.map;
        Ok(Judgement { score, map_width: *width, map_height: *height, map: data })
    }

    fn judge_some(
        &mut self,
        frames: &[(FrameView<'_>, Option<Roi>)],
        each: &mut dyn FnMut(usize, Result<Judgement<'_>, Problem>),
    ) {
        if self.with(|judge| judge.judge_some(frames, each)).is_none() {
            (0..frames.len()).for_each(|i| each(i, Err(busy())));
        }
    }

    fn company(&self) -> Option<Company> {
        Some(Company { key: Arc::as_ptr(&self.place).addr(), most: self.most })
    }

    fn meet(&mut self, line: usize, pages: &Arc<Pages>) {
        self.with(|judge| judge.meet(line, pages));
    }
}

fn busy() -> Problem {
    "the judge is in use by another line; this is a fault of inspectd".into()
}
