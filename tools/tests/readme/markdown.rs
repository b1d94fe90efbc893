//! As much of Markdown as the documents of this project use.

/// A document, cut into what the tests look at.
pub struct Document {
    /// Language and content of each fenced block.
    blocks: Vec<(String, String)>,
    /// Heading of the second level above it, and content, of each code span.
    spans: Vec<(String, String)>,
    /// Heading right above it, and cells, of each row of a table.
    rows: Vec<(String, Vec<String>)>,
    headings: Vec<String>,
    /// Text without the fenced blocks.
    text: String,
}

impl Document {
    pub fn parse(source: &str) -> Self {
        let (mut blocks, mut rows, mut headings) = (Vec::new(), Vec::new(), Vec::<String>::new());
        let mut fence: Option<(String, String)> = None;
        let mut text = String::new();
        let mut section = String::new();
        let mut sections: Vec<(String, String)> = vec![(String::new(), String::new())];
        for line in source.lines() {
            if let Some(language) = line.strip_prefix("```") {
                match fence.take() {
                    Some(block) => blocks.push(block),
                    None => fence = Some((language.to_owned(), String::new())),
                }
                continue;
            }
            if let Some((_, content)) = &mut fence {
                content.push_str(line);
                content.push('\n');
                continue;
            }
            if let Some(heading) = line.strip_prefix('#').map(|rest| rest.trim_start_matches('#').trim()) {
                headings.push(heading.to_owned());
                heading.clone_into(&mut section);
                if line.starts_with("## ") {
                    sections.push((heading.to_owned(), String::new()));
                }
            }
            if let Some(cells) = line.strip_prefix('|') {
                let cells =
                    cells.trim_end_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
                rows.push((section.clone(), cells));
            }
            text.push_str(line);
            text.push('\n');
            if let Some((_, text)) = sections.last_mut() {
                text.push_str(line);
                text.push('\n');
            }
        }
        assert!(fence.is_none(), "a fenced block does not end");
        let spans = sections
            .iter()
            .flat_map(|(section, text)| {
                let odd = text.split('`').skip(1).step_by(2);
                odd.map(|span| (section.clone(), span.replace('\n', " "))).collect::<Vec<_>>()
            })
            .collect();
        Self { blocks, spans, rows, headings, text }
    }

    pub fn blocks(&self, language: &str) -> impl Iterator<Item = &str> {
        self.blocks.iter().filter(move |block| block.0 == language).map(|block| block.1.as_str())
    }

    /// Code spans with the section that they are in.
    pub fn spans(&self) -> impl Iterator<Item = (&str, &str)> {
        self.spans.iter().map(|(section, span)| (section.as_str(), span.as_str()))
    }

    /// The code spans in a column of the first table below `heading` that has a column `title`.
    pub fn column(&self, heading: &str, title: &str) -> Vec<&str> {
        self.cells(heading, title).into_iter().map(|cell| cell.trim_matches('`')).collect()
    }

    /// The same as they stand.
    pub fn cells(&self, heading: &str, title: &str) -> Vec<&str> {
        let rows = self.rows.iter().filter(|row| row.0 == heading);
        let mut rows = rows.map(|row| &row.1).skip_while(|cells| !cells.iter().any(|cell| cell == title));
        let head = rows.next().map(|cells| cells.iter().position(|cell| cell == title));
        let Some(Some(column)) = head else { return Vec::new() };
        // Up to the next table, which has its own heading right above a line of dashes.
        let rows: Vec<&Vec<String>> = rows.skip(1).collect();
        let is_rule = |cells: &&Vec<String>| {
            cells.iter().all(|cell| !cell.is_empty() && cell.bytes().all(|byte| byte == b'-'))
        };
        let end = rows.iter().position(is_rule).map_or(rows.len(), |rule| rule - 1);
        rows[..end].iter().filter_map(|cells| cells.get(column)).map(String::as_str).collect()
    }

    /// Targets of links.
    pub fn links(&self) -> impl Iterator<Item = &str> {
        self.text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(link, _)| link)
    }

    /// What links to headings are called.
    pub fn anchors(&self) -> impl Iterator<Item = String> {
        self.headings.iter().map(|heading| {
            let kept = heading.chars().filter(|letter| letter.is_alphanumeric() || " -_".contains(*letter));
            kept.collect::<String>().to_lowercase().replace(' ', "-")
        })
    }
}

/// The simple commands of a piece of shell, in words: quotes are taken off, redirections left out.
pub fn commands_of_shell(script: &str) -> Vec<Vec<String>> {
    let mut commands = vec![Vec::new()];
    let (mut word, mut quote) = (String::new(), None);
    let end_word = |word: &mut String, commands: &mut Vec<Vec<String>>, ends_command: bool| {
        if !word.is_empty() {
            commands.last_mut().into_iter().for_each(|command| command.push(std::mem::take(word)));
        }
        if ends_command {
            commands.push(Vec::new());
        }
    };
    for letter in script.replace("2>&1", "").chars() {
        match (quote, letter) {
            (Some(open), close) if open == close => quote = None,
            (Some(_), _) => word.push(letter),
            (None, '\'' | '"') => quote = Some(letter),
            (None, '|' | ';' | '&' | '\n') => end_word(&mut word, &mut commands, true),
            (None, letter) if letter.is_whitespace() => end_word(&mut word, &mut commands, false),
            (None, letter) => word.push(letter),
        }
    }
    end_word(&mut word, &mut commands, true);
    commands.retain(|command| !command.is_empty());
    for command in &mut commands {
        if let Some(at) = command.iter().position(|word| word == ">" || word == "<") {
            command.truncate(at);
        }
    }
    commands
}
