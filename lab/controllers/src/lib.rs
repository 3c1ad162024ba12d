//! lab-controllers
