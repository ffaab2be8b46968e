def report(folder, output=None):
  return 'none'
