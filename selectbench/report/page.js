(() => {
  const root = document.documentElement, theme = document.getElementById('theme');
  theme.hidden = false;
  theme.addEventListener('click', () => {
    const dark = root.dataset.theme ? root.dataset.theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
    root.dataset.theme = dark ? 'light' : 'dark';
  });
  const key = (row, column) => {
    const cell = row.cells[column];
    return 'value' in cell.dataset ? cell.dataset.value : cell.textContent.trim().toLowerCase();
  };
  const sort = (table, column, head) => {
    const body = table.tBodies[0], rising = head.getAttribute('aria-sort') !== 'ascending';
    const number = 'number' in head.dataset;
    const rows = [...body.rows].sort((a, b) => {
      const x = key(a, column), y = key(b, column);
      if (x === '' || y === '') return (x === '') - (y === '');
      const order = number ? Number(x) - Number(y) : x.localeCompare(y);
      return rising ? order : -order;
    });
    for (const other of table.tHead.rows[0].cells) other.removeAttribute('aria-sort');
    head.setAttribute('aria-sort', rising ? 'ascending' : 'descending');
    body.append(...rows);
  };
  for (const table of document.querySelectorAll('table.sortable')) {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = document.createElement('button');
      button.type = 'button';
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener('click', () => sort(table, column, head));
    });
  }
})();
